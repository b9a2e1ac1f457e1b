"""The processes behind the API: Faust apps, the release loop, maintenance. Only here is Faust known."""
