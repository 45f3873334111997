//! The framework of the tests that cross a process.
