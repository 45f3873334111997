//! Amazon Resource Names.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html>

use std::{borrow::Cow, fmt, str::FromStr};

/// The name of a resource, in the partition `aws`:
/// `arn:aws:ec2:us-east-1:111122223333:instance/i-…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arn {
    /// The service that it is of, as `ec2`.
    pub service: Cow<'static, str>,
    /// Where it is; empty for what is in no region, as an account's root.
    pub region: String,
    /// Whose it is; empty where names have no owner, as those of images.
    pub account: String,
    /// What ARNs call its kind, as `instance`; empty where the id stands alone.
    pub kind: Cow<'static, str>,
    /// Which of them; [`Self::ANY`] for what is yet to be made.
    pub id: String,
}

impl Arn {
    /// In place of the id of what doesn't exist yet.
    pub const ANY: &'static str = "*";

    /// The name of a resource of this service.
    pub fn new(
        service: &'static str,
        region: &str,
        account: &str,
        kind: &'static str,
        id: &str,
    ) -> Self {
        Self {
            service: Cow::Borrowed(service),
            region: region.to_owned(),
            account: account.to_owned(),
            kind: Cow::Borrowed(kind),
            id: id.to_owned(),
        }
    }

    /// The name of an account's root.
    pub fn root(account: &str) -> Self {
        Self {
            service: Cow::Borrowed("iam"),
            region: String::new(),
            account: account.to_owned(),
            kind: Cow::Borrowed(""),
            id: "root".to_owned(),
        }
    }

    /// Any of its kind, in its place.
    #[must_use]
    pub fn any(&self) -> Self {
        Self {
            id: Self::ANY.to_owned(),
            ..self.clone()
        }
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            region,
            account,
            kind,
            id,
        } = self;
        let slash = if kind.is_empty() { "" } else { "/" };
        write!(f, "arn:aws:{service}:{region}:{account}:{kind}{slash}{id}")
    }
}

/// Why a string is no ARN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not of the form arn:aws:service:region:account:resource")]
pub struct MalformedArn;

impl FromStr for Arn {
    type Err = MalformedArn;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", "aws", service, region, account, resource] = parts[..] else {
            return Err(MalformedArn);
        };
        // A key pair's name may have a slash, too.
        let (kind, id) = match resource.split_once('/') {
            Some(("", _)) => return Err(MalformedArn),
            Some(parts) => parts,
            None => ("", resource),
        };
        if service.is_empty() || id.is_empty() {
            return Err(MalformedArn);
        }
        Ok(Self {
            service: Cow::Owned(service.to_owned()),
            region: region.to_owned(),
            account: account.to_owned(),
            kind: Cow::Owned(kind.to_owned()),
            id: id.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddressHolder, Authority, Described as _, PublicAddress, Resource as _, samples};

    #[test]
    fn what_is_written_is_read_again() {
        for (arn, text) in [
            (
                Arn::new("ec2", "us-east-1", "111122223333", "instance", "i-1"),
                "arn:aws:ec2:us-east-1:111122223333:instance/i-1",
            ),
            (
                Arn::new("ec2", "us-east-1", "111122223333", "key-pair", "a/b:c").any(),
                "arn:aws:ec2:us-east-1:111122223333:key-pair/*",
            ),
            (
                Arn::new("ec2", "us-east-1", "111122223333", "key-pair", "a/b:c"),
                "arn:aws:ec2:us-east-1:111122223333:key-pair/a/b:c",
            ),
            (Arn::root("111122223333"), "arn:aws:iam::111122223333:root"),
        ] {
            assert_eq!(arn.to_string(), text);
            assert_eq!(text.parse(), Ok(arn));
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            "",
            "i-1",
            "arn:aws:ec2:us-east-1:111122223333",
            "arn:aws-cn:ec2:us-east-1:111122223333:instance/i-1",
            "arn:aws::us-east-1:111122223333:instance/i-1",
            "arn:aws:ec2:us-east-1:111122223333:",
            "arn:aws:ec2:us-east-1:111122223333:instance/",
            "arn:aws:ec2:us-east-1:111122223333:/i-1",
        ] {
            assert_eq!(bad.parse::<Arn>(), Err(MalformedArn), "{bad}");
        }
    }

    #[test]
    fn a_record_says_of_which_resource_it_is() {
        let instance = samples::instance(1);
        assert_eq!(instance.authority(), Authority::Own(instance.arn()));
        // An image's name has no owner, as on EC2.
        let image = samples::image();
        let expected = format!("arn:aws:ec2:us-east-1::image/{}", image.id);
        assert_eq!(image.arn().to_string(), expected);
        let eni = samples::eni(1);
        let address = |owner| PublicAddress {
            address: "203.0.113.1".into(),
            holder: AddressHolder::Interface(eni.id.clone()),
            owner,
        };
        let owned = address(Some(samples::scope()));
        assert_eq!(owned.authority(), Authority::Of(eni.arn()));
        assert!(matches!(address(None).authority(), Authority::Closed(_)));
    }
}
