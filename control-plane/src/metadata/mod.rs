//! The instance metadata service (IMDS), versions 1 and 2, on 169.254.169.254.
//!
//! [`Facts`] are read from the view, [`tree`] turns them into the documents
//! that cloud-init, the AWS SDKs and a person with curl ask for, [`answer`]
//! decides on one request, all of it pure; [`server`] puts it on a socket. Who
//! asks is known by the address that the namespace's anti-spoofing vouches for,
//! never by what the request says.
//!
//! Not served, and 404: `dynamic/instance-identity/{pkcs7,signature,rsa2048}`
//! (nobody could verify them), `iam/` (no instance profiles yet), `spot/`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>

pub mod answer;
pub mod facts;
pub mod server;
pub mod token;
pub mod tree;

pub use facts::Facts;
