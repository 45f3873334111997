//! What a call must be authorized for to write a record.

use super::Arn;

/// What a call must be authorized for to write a record. Each declaration of a
/// record says it, so that none can be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Authority {
    /// The resource that the record is.
    Own(Arn),
    /// The resource that it belongs to.
    Of(Arn),
    /// Nothing: every call may write it, for this reason.
    Free(&'static str),
    /// No authorization is enough: calls don't write it, for this reason.
    Closed(&'static str),
}
