"""Which domains are one mail system: what is too much for one of them is too much for all. Known by name, without DNS."""

from collections.abc import Mapping
from typing import Final

MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "gmail": ("gmail.com", "googlemail.com", "google.com"),
    "outlook": (
        *("outlook.com", "outlook.de", "outlook.fr", "outlook.es", "outlook.it", "outlook.jp", "outlook.com.br"),
        *("hotmail.com", "hotmail.co.uk", "hotmail.de", "hotmail.fr", "hotmail.it", "hotmail.es", "hotmail.nl"),
        *("hotmail.be", "hotmail.se", "hotmail.no", "hotmail.com.br", "hotmail.com.ar", "hotmail.co.jp"),
        *("live.com", "live.co.uk", "live.de", "live.fr", "live.it", "live.nl", "live.be", "live.se", "live.dk"),
        *("live.no", "live.ca", "live.com.mx", "live.com.au", "live.cn", "live.jp"),
        *("msn.com", "passport.com", "windowslive.com"),
    ),
    "yahoo": (
        *("yahoo.com", "yahoo.co.uk", "yahoo.de", "yahoo.fr", "yahoo.it", "yahoo.es", "yahoo.ca", "yahoo.in"),
        *("yahoo.co.in", "yahoo.com.br", "yahoo.com.ar", "yahoo.com.mx", "yahoo.com.au", "yahoo.com.ph"),
        *("yahoo.com.sg", "yahoo.com.hk", "yahoo.com.tw", "yahoo.com.vn", "yahoo.co.id", "yahoo.co.nz", "yahoo.co.za"),
        *("yahoo.gr", "yahoo.ie", "yahoo.se", "yahoo.no", "yahoo.dk", "yahoo.pl", "yahoo.ro", "yahoo.at"),
        *("ymail.com", "rocketmail.com", "myyahoo.com", "yahoo.com.tr", "yahoo.be", "yahoo.nl"),
        *("aol.com", "aol.co.uk", "aol.de", "aol.fr", "aim.com", "netscape.net", "verizon.net"),
    ),
    "yahoo-japan": ("yahoo.co.jp", "ymail.ne.jp"),
    "icloud": ("icloud.com", "me.com", "mac.com"),
    "gmx": ("gmx.de", "gmx.net", "gmx.at", "gmx.ch", "gmx.com", "gmx.org", "gmx.eu", "gmx.info", "gmx.biz", "web.de"),
    "mail-com": ("mail.com", "email.com", "usa.com", "europe.com", "consultant.com", "engineer.com", "post.com"),
    "t-online": ("t-online.de", "magenta.de"),
    "freenet": ("freenet.de",),
    "mail-ru": ("mail.ru", "bk.ru", "inbox.ru", "list.ru", "internet.ru", "xmail.ru"),
    "yandex": ("yandex.ru", "yandex.com", "yandex.by", "yandex.kz", "yandex.ua", "yandex.com.tr", "ya.ru", "narod.ru"),
    "proton": ("proton.me", "protonmail.com", "protonmail.ch", "pm.me"),
    "zoho": ("zoho.com", "zohomail.com", "zoho.eu", "zohomail.eu", "zoho.in", "zohomail.in"),
    "fastmail": ("fastmail.com", "fastmail.fm", "messagingengine.com"),
    "orange-fr": ("orange.fr", "wanadoo.fr"),
    "free-fr": ("free.fr", "aliceadsl.fr"),
    "laposte": ("laposte.net",),
    "sfr": ("sfr.fr", "neuf.fr", "cegetel.net", "club-internet.fr"),
    "libero": ("libero.it", "virgilio.it", "iol.it", "inwind.it", "blu.it", "giallo.it"),
    "tim": ("tim.it", "alice.it", "tin.it"),
    "btinternet": ("btinternet.com", "btopenworld.com", "talk21.com"),
    "virgin-media": ("virginmedia.com", "ntlworld.com", "blueyonder.co.uk", "virgin.net"),
    "comcast": ("comcast.net",),
    "att": ("att.net", "sbcglobal.net", "bellsouth.net", "ameritech.net", "pacbell.net", "swbell.net"),
    "charter": ("charter.net", "spectrum.net", "rr.com", "twc.com"),
    "cox": ("cox.net",),
    "qq": ("qq.com", "vip.qq.com", "foxmail.com"),
    "netease": ("163.com", "126.com", "yeah.net", "vip.163.com", "188.com"),
    "sina": ("sina.com", "sina.cn", "vip.sina.com"),
    "naver": ("naver.com",),
    "daum": ("daum.net", "hanmail.net", "kakao.com"),
    "seznam": ("seznam.cz", "email.cz", "post.cz", "spoluzaci.cz"),
    "wp-pl": ("wp.pl", "o2.pl", "tlen.pl"),
    "onet": ("onet.pl", "op.pl", "poczta.onet.pl", "vp.pl", "onet.eu"),
    "interia": ("interia.pl", "poczta.fm", "interia.eu", "interia.com"),
    "uol": ("uol.com.br", "bol.com.br"),
    "terra": ("terra.com.br",),
    "rediff": ("rediffmail.com", "rediff.com"),
    "ukr-net": ("ukr.net",),
    "bluewin": ("bluewin.ch",),
    "ziggo": ("ziggo.nl", "upcmail.nl", "home.nl", "casema.nl", "chello.nl"),
    "kpn": ("kpnmail.nl", "planet.nl", "hetnet.nl", "kpn.nl", "xs4all.nl"),
    "telenet": ("telenet.be", "pandora.be"),
    "proximus": ("skynet.be", "proximus.be"),
}
"""By the group's name, which is what `shared_limits` calls it."""

_GROUP: Final[Mapping[str, str]] = {domain: group for group, domains in MEMBERS.items() for domain in domains}


def mx_group(domain: str) -> str:
    """The group's name, or the domain itself where it is in none. `domain` as in an email_key: lower case, A-labels."""
    return _GROUP.get(domain, domain)
