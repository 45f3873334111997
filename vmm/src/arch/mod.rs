//! What depends on the processor: where things lie in the guest's memory, how its
//! kernel is entered, and what its vCPUs look like.

pub mod x86_64;
