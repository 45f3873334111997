//! The whole cloud: AWS CLI, boto3, ssh and curl against real instances.
//!
//! The cloud is the one that `scripts/up` started and `hearth.env` names. The
//! tests run one after the other and in the order of their names, since they
//! share it: `--test-threads=1`.

mod a_first_instance;
mod a_limits;
mod b_exercise;
mod c_security_groups;
mod d_crash;
mod d_hibernation;
mod d_reboot;
mod e_clean;
