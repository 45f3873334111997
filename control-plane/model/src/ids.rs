//! Identifiers, each of the form that its service gives it: EC2 has a prefix that names
//! the kind and 17 hexadecimal digits, IAM names, Elastic Load Balancing ARNs.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html>

use std::fmt;

use super::Arn;

/// What the identifiers of a kind look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdForm {
    /// EC2's: this prefix, a dash and 17 hexadecimal digits, or 8 as there were once.
    Digits(&'static str),
    /// A name that its maker chose: ASCII letters, digits and those of `more`. It is
    /// unique in its scope only.
    Name {
        /// How many characters it has at most.
        longest: usize,
        /// What it may have beside letters and digits.
        more: &'static str,
    },
    /// The whole ARN of a resource of this service and kind.
    Arn {
        /// As [`Arn::service`].
        service: &'static str,
        /// As [`Arn::kind`].
        kind: &'static str,
    },
}

impl IdForm {
    /// Whether a text is of this form.
    pub fn fits(self, text: &str) -> bool {
        match self {
            Self::Digits(prefix) => {
                let rest = text.strip_prefix(prefix).and_then(|r| r.strip_prefix('-'));
                rest.is_some_and(|digits| {
                    matches!(digits.len(), 8 | 17)
                        && digits
                            .bytes()
                            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                })
            }
            Self::Name { longest, more } => {
                let fits = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
                (1..=longest).contains(&text.len()) && text.chars().all(fits)
            }
            Self::Arn { .. } => self.arn(text).is_some(),
        }
    }

    /// The ARN that a text of this form is, if that is what the form asks for.
    pub fn arn(self, text: &str) -> Option<Arn> {
        let Self::Arn { service, kind } = self else {
            return None;
        };
        let arn: Arn = text.parse().ok()?;
        (arn.service == service && arn.kind == kind).then_some(arn)
    }
}

impl fmt::Display for IdForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digits(prefix) => write!(f, "{prefix}- followed by 8 or 17 hexadecimal digits"),
            Self::Name { longest, more } => {
                write!(f, "1 to {longest} letters, digits and characters of {more}")
            }
            Self::Arn { service, kind } => {
                write!(f, "arn:aws:{service}:region:account:{kind}/…")
            }
        }
    }
}

/// Why a string is no identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{given}\" is not of the form {form}")]
pub struct MalformedId {
    /// What was given.
    pub given: String,
    /// What the kind's identifiers look like.
    pub form: IdForm,
}

/// A new type for texts of one form.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $form:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as its service writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::MalformedId;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let form: $crate::IdForm = $form;
                if form.fits(s) { Ok(Self(s.to_owned())) } else {
                    Err($crate::MalformedId { given: s.chars().take(64).collect(), form })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::MalformedId;
            fn try_from(s: String) -> Result<Self, Self::Error> { s.parse() }
        }
        impl From<$name> for String { fn from(id: $name) -> String { id.0 } }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) }
        }
        impl AsRef<str> for $name { fn as_ref(&self) -> &str { &self.0 } }
        impl std::borrow::Borrow<str> for $name { fn borrow(&self) -> &str { &self.0 } }
    };
}

/// An identifier type of EC2's form: 17 digits after a prefix.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident = $prefix:literal) => {
        $crate::ids::text_type! { $(#[$doc])* $name, $crate::IdForm::Digits($prefix) }

        impl $name {
            /// The prefix, without its dash.
            pub const PREFIX: &'static str = $prefix;

            /// Makes an identifier from random bits; the top 60 bits are dropped.
            pub fn from_random(bits: u128) -> Self {
                Self(format!("{}-{:017x}", $prefix, bits & ((1 << 68) - 1)))
            }
        }
    };
}

/// An identifier type that the API takes, with its service's errors for it: see
/// [`resource!`](super::resource).
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident = $form:tt of $service:literal $kind:literal,
     $malformed:literal, $not_found:literal, $noun:literal $([$one:literal, $many:literal])?) => {
        $crate::ids::of_form! { $(#[$doc])* $name = $form }
        impl $crate::Identifier for $name {
            const FORM: $crate::IdForm = $crate::ids::form!($form of $service $kind);
            const MALFORMED: &'static str = $malformed;
            const NOT_FOUND: &'static str = $not_found;
            const ABSENT: [&'static str; 2] = $crate::ids::absent!($noun $([$one, $many])?);
        }
    };
}

/// The type of an identifier of this form.
macro_rules! of_form {
    ($(#[$doc:meta])* $name:ident = $prefix:literal) => {
        $crate::ids::id_type! { $(#[$doc])* $name = $prefix }
    };
    ($(#[$doc:meta])* $name:ident = $other:tt) => {
        $crate::ids::text_type! { $(#[$doc])* $name, <Self as $crate::Identifier>::FORM }
    };
}

/// A declaration's form, with the service and the kind that ARNs have.
macro_rules! form {
    ($prefix:literal of $service:literal $kind:literal) => {
        $crate::IdForm::Digits($prefix)
    };
    ({ name: $longest:literal, more: $more:literal } of $service:literal $kind:literal) => {
        $crate::IdForm::Name {
            longest: $longest,
            more: $more,
        }
    };
    ({ arn } of $service:literal $kind:literal) => {
        $crate::IdForm::Arn {
            service: $service,
            kind: $kind,
        }
    };
}

/// EC2's usual words for what isn't there, of one and of many, or those given.
macro_rules! absent {
    ($noun:literal) => {
        [
            concat!("The ", $noun, " '{ids}' does not exist"),
            concat!("The ", $noun, "s '{ids}' do not exist"),
        ]
    };
    ($noun:literal [$one:literal, $many:literal]) => {
        [$one, $many]
    };
}

pub(crate) use {absent, form, id_type, identifier, of_form, text_type};

id_type! {
    /// The reservation that one RunInstances call made.
    ReservationId = "r"
}
id_type! {
    /// The attachment of an interface to an instance.
    EniAttachmentId = "eni-attach"
}
id_type! {
    /// A set of DHCP options.
    DhcpOptionsId = "dopt"
}

#[cfg(test)]
mod tests {
    use crate::{
        Arn, Described as _, IdForm, Identifier as _, InstanceId, Resource as _, samples,
        samples::{LoadBalancer, LoadBalancerArn, Role, RoleName},
    };

    const BALANCER: &str = "arn:aws:elasticloadbalancing:us-east-1:000000000000:\
                            loadbalancer/app/web/50dc6c495c0c9188";

    #[test]
    fn ids_have_17_digits_and_parse_back() {
        let id = InstanceId::from_random(u128::MAX);
        assert_eq!(id.as_str(), "i-fffffffffffffffff");
        assert_eq!(id.as_str().parse::<InstanceId>(), Ok(id));
        assert_eq!(InstanceId::from_random(1).as_str(), "i-00000000000000001");
    }

    #[test]
    fn another_kinds_id_is_refused() {
        for bad in [
            "",
            "i-",
            "i-123",
            "vol-00000000000000001",
            "i-0000000000000000G",
            "i-0000000000000000A",
        ] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
        assert_eq!(
            "i-1".parse::<InstanceId>().unwrap_err().to_string(),
            "\"i-1\" is not of the form i- followed by 8 or 17 hexadecimal digits"
        );
    }

    #[test]
    fn a_name_that_its_maker_chose_may_be_an_identifier() {
        let id: RoleName = "web_+=,.@-9".parse().unwrap();
        let longest = "x".repeat(64);
        assert!(longest.parse::<RoleName>().is_ok());
        for bad in ["", "a b", "a/b", "é", &format!("{longest}x")] {
            assert!(bad.parse::<RoleName>().is_err(), "{bad}");
        }
        let scope = samples::scope();
        let role = Role { id, scope };
        assert_eq!(role.key(), "/roles/000000000000/us-east-1/web_+=,.@-9");
        // IAM is in no region.
        let arn = "arn:aws:iam::000000000000:role/web_+=,.@-9";
        assert_eq!(role.arn().to_string(), arn);
        assert_eq!(Role::arn_at(&role.scope, Arn::ANY).id, Arn::ANY);
        assert!(Role::IN_USE.starts_with("Cannot delete entity"));
    }

    #[test]
    fn an_arn_may_be_an_identifier() {
        let id: LoadBalancerArn = BALANCER.parse().unwrap();
        for bad in [
            "",
            "web",
            "arn:aws:elasticloadbalancing:us-east-1:000000000000:targetgroup/web/1",
            "arn:aws:ec2:us-east-1:000000000000:loadbalancer/app/web/1",
            "arn:aws:elasticloadbalancing:us-east-1:000000000000:loadbalancer/",
        ] {
            assert!(bad.parse::<LoadBalancerArn>().is_err(), "{bad}");
        }
        let scope = samples::scope();
        let balancer = LoadBalancer {
            id: id.clone(),
            scope: scope.clone(),
            name: "web".into(),
        };
        assert_eq!(balancer.key(), "/load-balancers/000000000000/us-east-1/web");
        assert_eq!(balancer.arn().to_string(), BALANCER);
        // It is made of the rest of it, and names what it says, whosever that is.
        let made = LoadBalancer::arn_at(&scope, "app/web/50dc6c495c0c9188");
        assert_eq!(made, balancer.arn());
        let others = BALANCER.replace("000000000000", "111122223333");
        let arn = LoadBalancer::arn_at(&scope, &others);
        assert_eq!(arn.account, "111122223333");
        let form = LoadBalancerArn::FORM;
        assert!(form.fits(BALANCER) && !IdForm::Digits("i").fits(BALANCER));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<LoadBalancerArn>(&json).unwrap(), id);
    }
}
