//! `edge fail2ban import | test`.
