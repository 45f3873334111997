//! What transactions and views promise, beyond what stands beside each.

mod change;
mod db;
mod view;
