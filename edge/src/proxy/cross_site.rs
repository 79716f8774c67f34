//! Did a page of another origin make a browser send this request? Knows Fetch Metadata and `Origin`;
//! must not know what follows from it. Pure. It exists because whoever writes a page chooses what its
//! visitors' browsers ask for, and must not get them banned by it. Who sends such a mark itself
//! speaks of itself alone.
//!
//! Browsers mark every request to an address that begins with `https:` by all addresses that it passed
//! (W3C, Fetch Metadata Request Headers, Sec-Fetch-Site): one that was redirected here from anywhere else, or
//! through anywhere else, is `cross-site`. Those that a user typed or opened from outside a browser are
//! `none`: nobody else's page asked. Browsers that know no such mark, and WebSockets of some that do,
//! send an `Origin` where the page is another's.

use http::header;
use pingora_http::RequestHeader;

use crate::route::host_of;

const SITE: &str = "sec-fetch-site";

/// `same-site` is another host of the same domain, which may be somebody else's, too. In clear (not
/// `secure`) no browser marks anything, so that any request may be one of these.
pub(crate) fn is_cross_site(head: &RequestHeader, secure: bool) -> bool {
    let mut sites = head.headers.get_all(SITE).iter().peekable();
    if sites.peek().is_some() {
        return sites.any(|site| matches!(site.as_bytes(), b"cross-site" | b"same-site"));
    }
    if !secure {
        return true;
    }
    let own = match (head.uri.authority(), head.headers.get(header::HOST)) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().unwrap_or_default(),
        (None, None) => "",
    };
    let named = |origin: &str| {
        origin
            .split_once("://")
            .and_then(|(_, host)| host_of(host).ok())
            .is_some_and(|from| host_of(own).is_ok_and(|own| own == from))
    };
    // `null` is a page that hides its origin.
    head.headers.get(header::ORIGIN).is_some_and(|origin| !origin.to_str().is_ok_and(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(headers: &[(&'static str, &str)]) -> bool {
        let mut head = RequestHeader::build("GET", b"/.env", None).unwrap();
        head.append_header("host", "www.example.org:8443").unwrap();
        for (name, value) in headers {
            head.append_header(*name, *value).unwrap();
        }
        is_cross_site(&head, true)
    }

    #[test]
    fn what_another_page_asks_for_is_told_from_what_a_user_or_a_program_does() {
        for site in ["cross-site", "same-site"] {
            assert!(marked(&[("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")]), "{site}");
            assert!(marked(&[("sec-fetch-site", "none"), ("sec-fetch-site", site)]), "{site}");
        }
        for site in ["none", "same-origin", "Cross-Site", "nonsense", ""] {
            assert!(!marked(&[("sec-fetch-site", site), ("origin", "https://evil.example")]), "{site}");
        }
        assert!(!marked(&[("referer", "https://evil.example/")]), "a program");
    }

    #[test]
    fn in_clear_only_a_mark_says_that_no_other_page_asked() {
        let mut head = RequestHeader::build("GET", b"/.env", None).unwrap();
        assert!(is_cross_site(&head, false));
        head.append_header("sec-fetch-site", "same-origin").unwrap();
        assert!(!is_cross_site(&head, false));
    }

    #[test]
    fn where_a_browser_marks_nothing_its_origin_tells() {
        for foreign in ["https://evil.example", "null", "", "https://www.example.org.evil.example", "://"] {
            assert!(marked(&[("origin", foreign)]), "{foreign}");
        }
        for own in ["https://www.example.org", "https://WWW.example.org:443", "http://www.example.org"] {
            assert!(!marked(&[("origin", own)]), "{own}");
        }
    }
}
