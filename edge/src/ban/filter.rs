//! A filter's text → a compiled filter; a line → an offence. Knows patterns, tags and dates;
//! must not know who is counted or what becomes of an offender.
