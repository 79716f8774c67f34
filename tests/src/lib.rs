//! Starts the programs and their neighbours for stories and for the quickstart; asserts nothing.
