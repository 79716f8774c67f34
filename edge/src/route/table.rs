//! The routes in order of preference. Pure; must not know how a path was checked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use shared::config::ByteSize;

use super::host::HostPattern;
use super::path::comparable;
use crate::admission::Rate;

/// What is forwarded where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// For which hosts.
    pub host: HostPattern,
    /// For which paths: whole segments, so `/api` stands for `/api` and `/api/x`, not `/apix`.
    pub path_prefix: String,
    /// Name of the upstream.
    pub upstream: String,
    /// Largest request body; 0 B takes none.
    pub max_body: ByteSize,
    /// Until the upstream's first byte.
    pub timeout: Duration,
    /// How fast one client may ask on this route, besides what it may everywhere.
    pub rate: Option<Rate>,
}

/// Every route, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    exact: HashMap<String, Vec<Prefixed>>,
    /// Longest suffix first.
    below: Vec<(HostPattern, Vec<Prefixed>)>,
    any: Vec<Prefixed>,
}

/// A route and its prefix as compared: decoded, without a final slash. Lists of these are
/// kept longest prefix first.
#[derive(Clone, Debug)]
struct Prefixed {
    prefix: Vec<u8>,
    number: usize,
    route: Arc<Route>,
}

impl Routes {
    /// Sorts the routes. Of two for the same hosts and prefix, which the configuration
    /// refuses, the first holds.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        let mut table = Self::default();
        for (number, route) in routes.into_iter().enumerate() {
            let prefixed = Prefixed { prefix: prefix(&route.path_prefix), number, route: Arc::new(route) };
            match &prefixed.route.host {
                HostPattern::Exact(host) => table.exact.entry(host.clone()).or_default().push(prefixed),
                HostPattern::Any => table.any.push(prefixed),
                below @ HostPattern::Below(_) => {
                    match table.below.iter_mut().find(|(known, _)| known == below) {
                        Some((_, list)) => list.push(prefixed),
                        None => table.below.push((below.clone(), vec![prefixed])),
                    }
                }
            }
        }
        table.below.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.to_string().len()));
        let lists = table.exact.values_mut().chain(table.below.iter_mut().map(|(_, list)| list));
        for list in lists.chain([&mut table.any]) {
            list.sort_by_key(|prefixed| std::cmp::Reverse(prefixed.prefix.len()));
        }
        table
    }

    /// The route for `host`, as `host_of` returned it, and `path`, as `checked_path` did.
    /// An exact host beats a wildcard, a longer wildcard a shorter, any wildcard "any host";
    /// among equals the longest prefix holds. Where a host's own routes do not cover the
    /// path, the less exact ones are asked.
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        self.numbered(host, path).map(|(_, route)| route)
    }

    /// As [`Routes::find`], with the route's place in the list that [`Routes::new`] was handed.
    #[must_use]
    pub fn numbered(&self, host: &str, path: &str) -> Option<(usize, &Arc<Route>)> {
        let path = comparable(path);
        let own = self.exact.get(host).map(Vec::as_slice);
        let below =
            self.below.iter().filter(|(pattern, _)| pattern.matches(host)).map(|(_, list)| list.as_slice());
        own.into_iter()
            .chain(below)
            .chain([self.any.as_slice()])
            .flatten()
            .find(|prefixed| covers(&prefixed.prefix, &path))
            .map(|prefixed| (prefixed.number, &prefixed.route))
    }

    /// Do two prefixes stand for the same paths?
    #[must_use]
    pub fn same_prefix(left: &str, right: &str) -> bool {
        prefix(left) == prefix(right)
    }
}

fn prefix(written: &str) -> Vec<u8> {
    let mut prefix = comparable(written).into_owned();
    if prefix.last() == Some(&b'/') {
        prefix.pop();
    }
    prefix
}

fn covers(prefix: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(host: &str, path: &str) -> Route {
        Route {
            host: HostPattern::parse(host).unwrap(),
            path_prefix: path.to_owned(),
            upstream: format!("{host} {path}"),
            max_body: ByteSize::mib(1),
            timeout: Duration::from_secs(60),
            rate: None,
        }
    }

    fn found(routes: &Routes, host: &str, path: &str) -> String {
        routes.find(host, path).map_or_else(|| "none".to_owned(), |route| route.upstream.clone())
    }

    #[test]
    fn the_most_exact_host_and_then_the_longest_prefix_hold() {
        let routes = Routes::new(vec![
            route("*", "/"),
            route("*.example.org", "/"),
            route("*.shop.example.org", "/"),
            route("www.example.org", "/"),
            route("www.example.org", "/api"),
            route("www.example.org", "/api/v2/"),
        ]);
        for (host, path, expected) in [
            ("www.example.org", "/", "www.example.org /"),
            ("www.example.org", "/apix", "www.example.org /"),
            ("www.example.org", "/api", "www.example.org /api"),
            ("www.example.org", "/api/v2", "www.example.org /api/v2/"),
            ("www.example.org", "/api/v2/x", "www.example.org /api/v2/"),
            ("www.example.org", "/%61pi/v1", "www.example.org /api"),
            ("www.example.org", "//api//v1", "www.example.org /api"),
            ("a.example.org", "/api", "*.example.org /"),
            ("a.shop.example.org", "/", "*.shop.example.org /"),
            ("example.org", "/", "* /"),
        ] {
            assert_eq!(found(&routes, host, path), expected, "{host}{path}");
        }
    }

    #[test]
    fn a_path_no_own_route_covers_falls_to_less_exact_hosts() {
        let routes = Routes::new(vec![route("www.example.org", "/api"), route("*", "/static")]);
        assert_eq!(found(&routes, "www.example.org", "/static/x"), "* /static");
        assert_eq!(found(&routes, "www.example.org", "/other"), "none");
        assert_eq!(found(&routes, "other.example.org", "/api"), "none");
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_trying_every_route(
            prefixes in proptest::collection::vec("(/[ab]{1,2}){0,3}/?", 0..8),
            path in "(/[ab]{1,2}){1,4}",
        ) {
            let prefixes: Vec<String> = prefixes.into_iter().map(|text| if text.is_empty() { "/".to_owned() } else { text }).collect();
            let routes = Routes::new(prefixes.iter().map(|prefix| route("*", prefix)).collect());
            let plain = |prefix: &String| prefix.trim_end_matches('/').to_owned();
            let longest = prefixes
                .iter()
                .map(plain)
                .filter(|prefix| path == *prefix || path.starts_with(&format!("{prefix}/")))
                .map(|prefix| prefix.len())
                .max();
            let found = routes.find("any.host", &path).map(|route| plain(&route.path_prefix).len());
            prop_assert_eq!(found, longest);
        }
    }
}
