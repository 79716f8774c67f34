//! Follows log files through rotation, truncation, symlinks and absence. Knows files and
//! positions; must not know what lines mean.
