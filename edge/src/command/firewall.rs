//! `edge firewall print | apply | confirm | status | remove`.
