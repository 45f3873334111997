//! Every action through the real router and store, on a fake host.
