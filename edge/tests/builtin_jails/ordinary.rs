//! Ordinary visitors of ordinary sites: a web shop, an ERP, an API, WordPress, static pages, and
//! what phones, feed readers, search engines, probes and broken links ask for. Knows what is
//! normal, with all that looks like an attack and is none; must not know the filters.

use super::line::{Chance, Request};

const BROWSERS: &[&str] = &[
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/125.0.0.0 Safari/537.36 Edg/125.0.2535.92",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.6478.71 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; Android 13; SM-A536B; wv) AppleWebKit/537.36 Version/4.0 Chrome/124.0.6367.179 Mobile Safari/537.36 [FB_IAB/FB4A;FBAV/467.0.0.44.109;]",
    "Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; rv:11.0) like Gecko",
    "Mozilla/5.0 (SMART-TV; Linux; Tizen 6.0) AppleWebKit/537.36 SamsungBrowser/4.0 TV Safari/537.36",
    "Opera/9.80 (Android; Opera Mini/36.2/119.132; U; id) Presto/2.12.423 Version/12.16",
    "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0; SLCC2; .NET CLR 2.0.50727)",
];
const PROGRAMS: &[&str] = &[
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.6478.61 Mobile Safari/537.36 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
    "DuckDuckBot/1.1; (+http://duckduckgo.com/duckduckbot.html)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Mozilla/5.0 (compatible; CensysInspect/1.1; +https://about.censys.io/)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "WhatsApp/2.24.12.78 A",
    "Twitterbot/1.0",
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
    "TelegramBot (like TwitterBot)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
    "Feedly/1.0 (+http://www.feedly.com/fetcher.html; like FeedFetcher-Google)",
    "Tiny Tiny RSS/23.05 (https://tt-rss.org/)",
    "NetNewsWire (RSS Reader; https://netnewswire.com/)",
    "Mozilla/5.0 (compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)",
    "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)",
    "Uptime-Kuma/1.23.13",
    "check_http/v2.3.3 (monitoring-plugins 2.3.3)",
    "Prometheus/2.52.0",
    "Blackbox Exporter/0.25.0",
    "Zabbix",
    "kube-probe/1.29",
    "ELB-HealthChecker/2.0",
    "GoogleHC/1.0",
    "curl/8.5.0",
    "Wget/1.21.4",
    "python-requests/2.32.3",
    "Go-http-client/1.1",
    "okhttp/4.12.0",
    "axios/1.7.2",
    "Java/17.0.11",
    "Apache-HttpClient/4.5.14 (Java/17.0.11)",
    "GuzzleHttp/7",
    "libwww-perl/6.72",
    "PostmanRuntime/7.39.0",
    "Ruby",
    "MyShop/4.12.1 (com.example.shop; build:981; iOS 17.5.1) Alamofire/5.9.1",
    "Dalvik/2.1.0 (Linux; U; Android 14; SM-S918B)",
    "CFNetwork/1496.0.7 Darwin/23.5.0",
    "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.17328; Pro)",
    "Apple-iPhone15C2/2106.74",
    "WebDAVFS/3.0.0 (03008000) Darwin/23.5.0",
    "Microsoft-WebDAV-MiniRedir/10.0.19045",
    "git/2.43.0",
    "Mozilla/5.0 (compatible; Let's Encrypt validation server; +https://www.letsencrypt.org)",
    "W3C_Validator/1.3",
    "W3C-checklink/5.0.0 libwww-perl/6.72",
    "LinkChecker/10.4 (+https://linkchecker.github.io/linkchecker/)",
    "WordPress/6.5.4; https://blog.example.org",
    "Jetpack by WordPress.com",
    "WooCommerce/8.9.3 Hookshot (WordPress/6.5.4)",
    "SAP NetWeaver Application Server (1.0;753)",
    "Odoo/17.0",
    "Mozilla/5.0 zeitungsmarkt/2.1",
    "",
];
const WORDS: &[&str] = &[
    "chair",
    "oak-table",
    "O'Neill",
    "O%27Brien",
    "M%C3%BCller",
    "%E5%95%86%E5%93%81",
    "%D1%81%D1%82%D1%83%D0%BB",
    "caf%C3%A9",
    "AT%26T",
    "R%26D",
    "rock+%27n%27+roll",
    "union",
    "select",
    "drop",
    "table",
    "etc",
    "passwd",
    "admin",
    "shell",
    "root",
    "cmd",
    "exec",
    "script",
    "information",
    "schema",
    "insert",
    "update",
    "delete",
    "order",
    "by",
    "group",
    "having",
    "sleep",
    "echo",
    "cat",
    "id",
    "log4j",
    "jndi",
    "ldap",
    "nmap",
    "sqlmap",
    "nikto",
    "wp-login",
    "phpmyadmin",
    "backup",
    "config",
    "env",
    "git",
    "bash",
    "wget",
    "curl",
    "ping",
    "null",
    "2+and+3",
    "1+or+2",
    "10%25",
    "C%2B%2B",
    "C%23",
    "%22exact+phrase%22",
    "a%3Bb",
    "50%E2%82%AC",
    "(new)",
    "100%25+cotton",
    "..",
    "...",
    "--",
    "size%3D5",
    "%7Bsale%7D",
    "v1.2..v1.3",
    "Windows",
    "boot",
    "Solr",
    "Struts",
    "exploit",
    "webshell",
    "alfa",
    "c99",
    "benchmark",
];
const SEARCHES: &[&str] = &[
    "select+from+union",
    "how+to+union+select+in+sql",
    "union+select+statement",
    "what+is+%2Fetc%2Fpasswd",
    "%2Fetc%2Fhosts",
    "log4j+%24%7B",
    "order+by+date",
    "cat+%26+dog",
    "rm+-rf+explained",
    "wget+https%3A%2F%2Fexample.org%2Ffile.zip",
    "python+time.sleep(5)",
    "%3Cscript%3E",
    "drop+table+users",
    "1+%2B+1+%3D+2",
    "a%3Db+and+c%3Dd",
    "%27quoted%27",
    "O%27Neill+and+Sons",
    "the+boys%27+and+girls%27+rooms",
    "x%7Cy",
    "%22or%22+and+%22and%22",
    "SELECT+*+FROM+orders+WHERE+id+%3D+5",
    "C%3A%5CWindows%5CSystem32",
    "php+system()+function",
    "%2Fbin%2Fbash",
    "..%2F..%2F",
    "if(a%2Cb)",
    "insert+into+values",
    "salt+%27+pepper",
    "5+or+6+people",
    "win.ini+missing",
    "%23hashtag",
    "%7B%7Bmustache%7D%7D",
    "eval()",
];
const HEX: &str = "0123456789abcdef";
const BASE64: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// One request of an ordinary visitor.
pub(crate) fn line(chance: &mut Chance) -> String {
    let (method, target, status) = match chance.below(12) {
        0..3 => shop(chance),
        3 | 4 => erp(chance),
        5 | 6 => api(chance),
        7 => wordpress(chance),
        8 | 9 => pages(chance),
        10 => on_their_own(chance),
        _ => sign_in(chance),
    };
    let client = format!(
        "{}.{}.{}.{}",
        11 + chance.below(200),
        chance.below(256),
        chance.below(256),
        1 + chance.below(254)
    );
    let client = if chance.below(5) == 0 {
        format!("2001:db8:{}::{}", chance.letters(HEX, 4), 1 + chance.below(99))
    } else {
        client
    };
    let browser = chance.below(10) < 7;
    let user_agent = if browser { chance.pick(BROWSERS) } else { chance.pick(PROGRAMS) };
    let referer = match chance.below(5) {
        0 | 1 => String::new(),
        2 => "https://www.google.com/".to_owned(),
        3 => format!("https://www.example.org{}", shop(chance).1),
        _ => format!("https://search.example/?q={}", chance.pick(SEARCHES)),
    };
    let request = Request {
        client: &client,
        method,
        target: target.as_bytes(),
        status,
        bytes: chance.below(90_000),
        referer: referer.as_bytes(),
        user_agent: user_agent.as_bytes(),
    };
    request.line()
}

/// Mostly found, sometimes not: search engines follow dead links.
fn answer(chance: &mut Chance) -> u16 {
    [200, 200, 200, 200, 200, 200, 304, 302, 206, 404, 404, 301, 500][chance.below(13)]
}

fn number(chance: &mut Chance) -> usize {
    1 + chance.below(99_999)
}

fn shop(chance: &mut Chance) -> (&'static str, String, u16) {
    let (word, other, id) = (chance.pick(WORDS), chance.pick(WORDS), number(chance));
    let target = match chance.below(14) {
        0 => format!("/p/{id}-{word}-{other}.html"),
        1 => format!("/catalogsearch/result/?q={}", chance.pick(SEARCHES)),
        2 => format!("/search?q={word}+{other}&page={}", chance.below(30)),
        3 => format!("/category/{word}?with={other}&sort=price&order=desc&color=red%2Cblue&price=10-{id}"),
        4 => format!("/checkout/cart/add/uenc/{}~/product/{id}/", chance.letters(BASE64, 60)),
        5 => format!("/media/catalog/product/cache/{}/{word}_{id}.jpg?v=2", chance.letters(HEX, 32)),
        6 => format!("/static/version{id}/frontend/Theme/de_DE/js/bundle/bundle{}.min.js", chance.below(9)),
        7 => format!("/product/{word};jsessionid={}?id={id}", chance.letters("0123456789ABCDEF", 32)),
        8 => format!("/filter/{word}%7C{other}?f[0]=brand:{id}&f[1]=type:{word}|{other}|id"),
        9 => format!(
            "/?utm_source=newsletter&utm_campaign={word}%20{other}&gclid={}",
            chance.letters(BASE64, 80)
        ),
        10 => format!("/rest/V1/guest-carts/{}/items", chance.letters(BASE64, 32)),
        11 => format!("/img/resize?src=%2Fmedia%2F{word}.jpg&w=300&h=200&fit=crop,top"),
        12 => format!("/compare/{id}..{}", number(chance)),
        _ => format!(
            "/customer/section/load/?sections=cart%2Cmessages&force_new_section_timestamp=false&_={id}"
        ),
    };
    (if chance.below(8) == 0 { "POST" } else { "GET" }, target, answer(chance))
}

fn erp(chance: &mut Chance) -> (&'static str, String, u16) {
    let (word, other, id) = (chance.pick(WORDS), chance.pick(WORDS), number(chance));
    let target = match chance.below(18) {
        0 => format!("/web?debug=assets#id={id}&action=94&model=sale.order&view_type=form&menu_id=178"),
        1 => format!(
            "/sap/opu/odata/sap/API_SALES_ORDER_SRV/A_SalesOrder('{id}')?$expand=to_Item&$format=json"
        ),
        2 => format!(
            "/sap/opu/odata/sap/C_CUST?$filter=Name%20eq%20%27{word}%27%20and%20Amount%20gt%20{id}%20or%20startswith(Name,%27{other}%27)"
        ),
        3 => format!("/orders/list.aspx?return=../../{word}/menu.aspx&id={id}"),
        4 => format!("/report?file=quarterly..{id}.pdf&path=reports/2024/{word}&template=invoice_{id}"),
        5 => format!("/erp/doc.do;jsessionid={}?back=..%2F..%2Fmenu.do%3Fid%3D{id}", chance.letters(HEX, 32)),
        6 => format!("/web/content/{id}?download=true&filename={word}.xlsx"),
        7 => format!("/sap/bc/ui5_ui5/ui2/ushell/shells/abap/Fiorilaunchpad.html?sap-client=100#{word}"),
        8 => format!(
            "/rest/api/2/search?jql=project%20%3D%20%27{word}%27%20and%20status%20%3D%20Open%20order%20by%20created&startAt={id}"
        ),
        9 => format!(
            "/arcgis/rest/services/parcels/FeatureServer/0/query?where=1%3D1%20AND%20OBJECTID%3E{id}&outFields=*&f=pbf"
        ),
        10 => format!("/arcgis/query?where=(NAME%3D%27{word}%27)+AND+(1%3D1)&f=json"),
        11 => {
            format!("/api/customers?filter=name='{word}' and city='{other}'&limit={id}").replace(' ', "%20")
        }
        12 => format!("/dms/view?doc={id}&folder=%2FShares%2FEtc%2F{word}&page={}", chance.below(99)),
        13 => format!("/export.php?cols=id|name|{word}&sep=%7C&from=2024-01-01&to=2024-12-31&sum=1%2B1"),
        14 => format!("/calc?expr=(a%2Bb)*{id}&if=x%3E5%26%26y%3C3"),
        15 => format!("/files/{word}%20%26%20{other}/Angebot%20({id}).pdf"),
        16 => format!("/reports/run?sql_id={id}&order_by=2&group=1&having={word}"),
        _ => format!(
            "/xjs/_next?cmd=open&c={word}&do=view&e=1&action=edit&exec=0&code={}",
            chance.letters(BASE64, 24)
        ),
    };
    (if chance.below(4) == 0 { "POST" } else { "GET" }, target, answer(chance))
}

fn api(chance: &mut Chance) -> (&'static str, String, u16) {
    let (word, id) = (chance.pick(WORDS), number(chance));
    let token = chance.letters(BASE64, 40);
    let target = match chance.below(16) {
        0 => format!("/api/v2/orders/{id}/lines?include=customer,items&page[number]={}", chance.below(40)),
        1 => format!("/graphql?query=%7Buser(id%3A{id})%7Bname%2Cemail%2Corders(first%3A10)%7Bid%7D%7D%7D"),
        2 => format!("/graphql?query={{items(where:{{name:{{_eq:\"{word}\"}}}},limit:{id}){{id}}}}"),
        3 => format!("/api/.well-known/openid-configuration?x={id}"),
        4 => format!(
            "/api/v1/query?query=sum(rate(http_requests_total%7Bjob%3D%22{word}%22%7D%5B5m%5D))%20by%20(code)&time={id}"
        ),
        5 => format!(
            "/query?db=metrics&q=SELECT+mean(value)+FROM+(SELECT+*+FROM+cpu)+WHERE+time+%3E+now()-{id}s"
        ),
        6 => format!(
            "/?query=SELECT%20count()%20FROM%20{word}%20WHERE%20id%3D{id}%20AND%20name%20LIKE%20%27{word}%25%27"
        ),
        7 => format!(
            "/v1/objects/{}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={}",
            chance.letters(HEX, 32),
            chance.letters(HEX, 64)
        ),
        8 => format!("/_search?q=name:{word}%20AND%20price:%5B1%20TO%20{id}%5D&sort=price:asc"),
        9 => format!("/api/items?filters[name][$contains]={word}&filters[id][$ne]={id}&populate=*"),
        10 => format!("/api/token/refresh?data={token}%3D%3D"),
        11 => format!("/socket.io/?EIO=4&transport=polling&t={}&sid={token}", chance.letters(BASE64, 7)),
        12 => format!("/project/.git/info/refs?service=git-upload-pack&n={id}"),
        13 => format!("/group/{word}/-/blob/main/.gitlab-ci.yml?ref={token}"),
        14 => format!("/owner/repo-{id}/src/branch/main/.env.example"),
        _ => format!("/api/v1/{word}/{id}/status"),
    };
    let method = chance.pick(&["GET", "GET", "GET", "POST", "PUT", "PATCH", "DELETE"]);
    let status = match chance.below(10) {
        _ if target.contains("/.git") || target.contains("/.env") => 200,
        0 if method != "GET" => 422,
        1 if method != "GET" => 400,
        _ => answer(chance),
    };
    let method =
        ["GET", "POST", "PUT", "PATCH", "DELETE"].into_iter().find(|known| *known == method).unwrap();
    (method, target, status)
}

fn wordpress(chance: &mut Chance) -> (&'static str, String, u16) {
    let (word, id) = (chance.pick(WORDS), number(chance));
    match chance.below(14) {
        0 => (
            "GET",
            format!("/{}/{:02}/{word}-{id}/", 2010 + chance.below(15), 1 + chance.below(12)),
            answer(chance),
        ),
        1 => ("GET", format!("/wp-content/uploads/2024/05/{word}-{id}-300x200.jpg"), answer(chance)),
        2 => (
            "GET",
            format!("/wp-content/plugins/contact-form-7/includes/js/index.js?ver=5.9.{id}"),
            answer(chance),
        ),
        3 => ("POST", format!("/wp-admin/admin-ajax.php?action={word}&n={id}"), 200),
        4 => ("GET", format!("/wp-json/wp/v2/posts?per_page=10&search={word}&offset={id}"), answer(chance)),
        5 => (
            "GET",
            "/wp-login.php?redirect_to=https%3A%2F%2Fexample.org%2Fwp-admin%2F&reauth=1".to_owned(),
            200,
        ),
        6 => ("POST", "/wp-login.php".to_owned(), 302),
        7 => ("GET", format!("/wp-admin/post.php?post={id}&action=edit"), 200),
        8 => ("GET", format!("/wp-includes/js/jquery/jquery.min.js?ver=3.7.{id}"), answer(chance)),
        9 => ("POST", format!("/wp-cron.php?doing_wp_cron={id}.1234"), 200),
        10 => (
            "POST",
            format!(
                "/xmlrpc.php?for=jetpack&token={}%3A1&timestamp={id}&nonce=x&body-hash=&signature={}%3D",
                chance.letters(HEX, 8),
                chance.letters(BASE64, 27)
            ),
            200,
        ),
        11 => ("GET", format!("/tag/{word}/feed/?paged={id}"), answer(chance)),
        12 => ("GET", format!("/?s={}&post_type=product&n={id}", chance.pick(SEARCHES)), 200),
        _ => (
            "GET",
            format!("/wp-content/themes/astra/assets/css/minified/main.min.css?ver={id}"),
            answer(chance),
        ),
    }
}

fn pages(chance: &mut Chance) -> (&'static str, String, u16) {
    let (word, other, id) = (chance.pick(WORDS), chance.pick(WORDS), number(chance));
    let target = match chance.below(18) {
        0 => format!("/wiki/{word}_{other}?oldid={id}"),
        1 => "/wiki//etc/passwd".to_owned(),
        2 => format!("/docs/{word}/{other}.html?v={id}"),
        3 => format!("/blog/{id}/how-{word}-and-{other}-work"),
        4 => format!("/blog/log4shell-jndi-ldap-explained?page={id}"),
        5 => format!("/assets/{word}.{}.css", chance.letters(HEX, 8)),
        6 => format!("/assets/chunk-{}.js.map", chance.letters(HEX, 8)),
        7 => format!("/fonts/{word}-{id}.woff2"),
        8 => format!("/%E4%B8%AD%E6%96%87/%E6%96%B0%E9%97%BB/{id}"),
        9 => format!("/%D0%BD%D0%BE%D0%B2%D0%BE%D1%81%D1%82%D0%B8/{word}/{id}"),
        10 => format!("/download/{word}-{id}.tar.gz"),
        11 => format!("/img/../{word}{id}.png"),
        12 => format!("/cars;color=red;id={id}/list"),
        13 => format!("/index.php?page={word}&lang=de&id={id}"),
        14 => format!("/page?a=1&amp;id={id}&amp;cat=7"),
        15 => format!("/p/{{{{item.{word}}}}}?n={id}"),
        16 => format!("/img/${{image.src}}?{id}"),
        _ => format!("/cgi-bin/shop-{word}.pl?item={id}"),
    };
    (if chance.below(20) == 0 { "HEAD" } else { "GET" }, target, answer(chance))
}

/// What browsers, phones, certificate authorities and mail programs ask of every site.
fn on_their_own(chance: &mut Chance) -> (&'static str, String, u16) {
    let id = number(chance);
    let fixed = [
        "/favicon.ico",
        "/apple-touch-icon.png",
        "/apple-touch-icon-120x120-precomposed.png",
        "/robots.txt",
        "/sitemap.xml",
        "/ads.txt",
        "/.well-known/security.txt",
        "/.well-known/assetlinks.json",
        "/.well-known/apple-app-site-association",
        "/.well-known/change-password",
        "/.well-known/traffic-advice",
        "/.well-known/dnt-policy.txt",
        "/.well-known/openid-configuration",
        "/browserconfig.xml",
        "/autodiscover/autodiscover.xml",
        "/Autodiscover/Autodiscover.xml",
        "/Microsoft-Server-ActiveSync",
        "/livez",
        "/healthz",
        "/health",
        "/actuator/health",
        "/metrics",
        "/manifest.json",
        "/site.webmanifest",
        "/service-worker.js",
        "/humans.txt",
        "/crossdomain.xml",
        "/feed",
        "/rss.xml",
        "/ping",
        "/status",
        "/dav/.DS_Store",
        "/dav/._notes",
        "/appsettings.Production.json",
        "/.well-known/caldav",
        "/admin",
        "/login",
    ];
    let target = match chance.below(4) {
        0 => format!("/.well-known/acme-challenge/{}", chance.letters(BASE64, 43)),
        1 => format!(
            "/autodiscover/autodiscover.json/v1.0/user{id}%40example.org?Protocol=ActiveSync&RedirectCount=1"
        ),
        _ => format!("{}?{id}", chance.pick(&fixed)),
    };
    let status = if target.starts_with("/actuator") { 200 } else { [200, 404, 404, 301][chance.below(4)] };
    ("GET", target, status)
}

fn sign_in(chance: &mut Chance) -> (&'static str, String, u16) {
    let (id, token) = (number(chance), chance.letters(BASE64, 43));
    match chance.below(7) {
        0 => (
            "GET",
            format!(
                "/oauth/authorize?response_type=code&client_id={id}&redirect_uri=https%3A%2F%2Fapp.example.org%2Fcb%3Fx%3D..%2Fy%26z%3D1&state={token}%3D%3D&scope=openid%20profile"
            ),
            302,
        ),
        1 => (
            "GET",
            format!("/login/callback?code={token}&state=%7B%22next%22%3A%22%2Forders%3Fid%3D{id}%22%7D"),
            302,
        ),
        2 => ("POST", format!("/login?next=%2Forders%2F{id}"), [200, 302, 302, 401][chance.below(4)]),
        3 => (
            "GET",
            format!(
                "/saml2/sso?SAMLRequest={}%2B{}%3D&RelayState=https%3A%2F%2Fexample.org%2F",
                chance.letters(BASE64, 90),
                chance.letters(BASE64, 40)
            ),
            200,
        ),
        4 => ("POST", format!("/api/session?t={token}"), [200, 201, 401][chance.below(3)]),
        5 => (
            "GET",
            format!("/sso?redirect=https%253A%252F%252Fapp.example.org%252F%253Fid%253D{id}%2526x%253D1"),
            302,
        ),
        _ => ("POST", format!("/account/reset/{token}"), [200, 302][chance.below(2)]),
    }
}
