//! An entry as one line. Pure. Whatever a client sent, the line has one newline, at its end,
//! and its fields can be told apart and read back.
