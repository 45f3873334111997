//! Amazon Resource Names.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html>

use std::fmt;

use super::Scope;

/// The name of a resource of EC2: `arn:aws:ec2:us-east-1:111122223333:instance/i-…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arn {
    /// Whose it is, and where.
    pub scope: Scope,
    /// What ARNs call its kind, as `instance`.
    pub kind: &'static str,
    /// Which of them; [`Self::ANY`] for what is yet to be made.
    pub id: String,
}

impl Arn {
    /// In place of the id of what doesn't exist yet.
    pub const ANY: &'static str = "*";
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scope { account, region } = &self.scope;
        write!(
            f,
            "arn:aws:ec2:{region}:{account}:{}/{}",
            self.kind, self.id
        )
    }
}
