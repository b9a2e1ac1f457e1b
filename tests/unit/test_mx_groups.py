from core.limits import Rate, SharedRates, recipient_limit
from core.mx_groups import MEMBERS, mx_group
from schemas.states import SharedLimitKind

TO = SharedLimitKind.RECIPIENT_DOMAIN


def test_domains_of_one_system_share_a_group() -> None:
    assert mx_group("gmail.com") == mx_group("googlemail.com") == "gmail"
    assert mx_group("web.de") == mx_group("gmx.net")


def test_an_unknown_domain_stands_for_itself() -> None:
    assert mx_group("example.com") == "example.com"


def test_no_domain_is_in_two_groups_and_no_group_is_called_like_a_domain() -> None:
    domains = [domain for members in MEMBERS.values() for domain in members]
    assert len(domains) == len(set(domains))
    assert not set(domains) & set(MEMBERS)
    assert all(domain == domain.lower() and "." in domain for domain in domains)


def test_a_domains_own_row_goes_before_its_groups_and_that_before_the_one_for_each() -> None:
    rates = SharedRates({(TO, "gmail"): Rate(1, 1), (TO, "googlemail.com"): Rate(2, 2), (TO, "*"): Rate(3, 3)})

    def rate(address: str) -> tuple[str, float]:
        limit = recipient_limit(address, rates)
        assert limit is not None
        return limit.key, limit.rate.per_second

    assert rate("a@gmail.com") == ("to:gmail", 1)
    assert rate("a@googlemail.com") == ("to:googlemail.com", 2)
    assert rate("a@example.com") == ("to:example.com", 3)


def test_a_row_that_limits_nothing_frees_its_target() -> None:
    rates = SharedRates({(TO, "example.com"): Rate(0, 1), (TO, "*"): Rate(3, 3)})
    assert recipient_limit("a@example.com", rates) is None
