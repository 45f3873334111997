//! What every record is, and how a resource is declared.
//!
//! A resource is declared once, with [`resource!`](super::resource) beside its
//! type: its kind, the form of its ids, what ARNs and tags call it, its service's
//! error codes for it and its indexes. Ids, the view, tags and the answers to
//! "is it there" follow from that.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Arn, Authority, ConditionKey, HostId, IdForm, Quota};

/// An account's part of a region: what a regional resource is in, and what its
/// names are unique in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// The account's number, 12 digits.
    pub account: String,
    /// The region's name, as `us-east-1`.
    pub region: String,
}

impl Scope {
    /// This account's part of this region.
    pub fn new(account: impl Into<String>, region: impl Into<String>) -> Self {
        Self {
            account: account.into(),
            region: region.into(),
        }
    }

    /// What the paths of all records in it begin with.
    pub fn prefix(&self) -> String {
        format!("{}/{}/", self.account, self.region)
    }

    /// The path of the record with this id in it.
    pub fn path(&self, id: &str) -> String {
        format!("{}/{}/{id}", self.account, self.region)
    }
}

/// Calls back with each key that a record is found under.
pub type Keys<T> = fn(&T, &mut dyn FnMut(&str));

/// A time as an index's key: in the order of time.
pub(super) fn in_time(time: jiff::Timestamp) -> String {
    format!("{:020}", time.as_microsecond().max(0))
}

/// An index of a kind: the keys that one record is found under.
#[derive(Debug)]
pub struct Index<T> {
    /// Its name, unique within the kind.
    pub name: &'static str,
    /// Calls back with each key of a record; with none, the record isn't in it.
    pub keys: Keys<T>,
}

/// An index by resources that its records refer to: EC2 deletes none of those while
/// they do.
#[derive(Debug)]
pub struct Reference<T> {
    /// The index. Its keys are their identifiers; where a record says that it hinders no
    /// deletion, it has none.
    pub index: Index<T>,
    /// Their [`Resource::KIND`].
    pub to: &'static str,
}

impl<T> Clone for Index<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Index<T> {}

/// A record of the desired state: one JSON value under one key of the store.
///
/// The key is `/{KIND}/{path}`; the path is `{account}/{region}/{id}`, or the id
/// alone for what the whole cloud shares.
pub trait Resource: Listed + Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The plural noun that heads the key, as in `/instances/…`.
    const KIND: &'static str;

    /// The version of the record's form. A change that a program of the version
    /// before could not read raises it.
    const VERSION: u32 = 1;

    /// What records of this kind are found by beside their id.
    const INDEXES: &'static [Index<Self>] = &[];

    /// Those of its indexes by what it refers to, and must be there for as long as it is.
    const REFERS: &'static [Reference<Self>] = &[];

    /// The last part of the key, unique in the scope.
    fn id(&self) -> &str;

    /// What it is in; `None` when the whole cloud shares it.
    fn scope(&self) -> Option<&Scope>;

    /// Whose it is: those of one scope write no record of another's.
    fn owner(&self) -> Option<&Scope> {
        self.scope()
    }

    /// What a call must be authorized for to write it.
    fn authority(&self) -> Authority;

    /// What it takes of which host. The view keeps the totals.
    fn claim(&self) -> Option<(&HostId, Quota)> {
        None
    }

    /// Brings a record of an older version to this one.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    fn upgrade(version: u32, _record: Value) -> Result<Value, String> {
        Err(format!(
            "version {version} of {} is not known here",
            Self::KIND
        ))
    }

    /// Its key without the kind.
    fn path(&self) -> String {
        match self.scope() {
            Some(scope) => scope.path(self.id()),
            None => self.id().to_owned(),
        }
    }

    /// The store's key of the record with this path.
    fn key_of(path: &str) -> String {
        format!("/{}/{path}", Self::KIND)
    }

    /// The store's key of this record.
    fn key(&self) -> String {
        Self::key_of(&self.path())
    }
}

/// A kind that [`each_kind!`](crate::each_kind) lists, and so one that the view keeps.
/// Without it a record would go to the store and never be seen.
pub trait Listed {
    /// Its place in the list.
    const SLOT: usize;
}

/// A record of one account in one region.
pub trait Regional: Resource {
    /// What it is in.
    fn home(&self) -> &Scope;
}

/// A record that has one name for all accounts, as a host or a public address.
pub trait Shared: Resource {}

/// An identifier that the API takes, with an error code for what is no such identifier
/// and one for what names nothing.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>
pub trait Identifier: std::str::FromStr + AsRef<str> + Clone {
    /// What it looks like.
    const FORM: IdForm;
    /// The code for what is no such identifier.
    const MALFORMED: &'static str;
    /// The code for one that names nothing.
    const NOT_FOUND: &'static str;
    /// What is said of one that names nothing, and of several; `{ids}` stands for them.
    const ABSENT: [&'static str; 2];
}

/// A resource that the API shows under an id of its own.
pub trait Described: Regional {
    /// Its identifier.
    type Id: Identifier;
    /// The service that it is of, as ARNs have it.
    const SERVICE: &'static str;
    /// What ARNs and `TagSpecification`s call it, as `instance`.
    const TYPE: &'static str;

    /// Its identifier; the key may be another, as a key pair's name is.
    fn described_id(&self) -> &Self::Id;

    /// What is said, with EC2's `DependencyViolation`, when it is to be deleted and something
    /// refers to it; `{id}` stands for its identifier.
    const IN_USE: &'static str;

    /// Whether ARNs say whose it is; those of images don't.
    ///
    /// <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html#amazonec2-resources-for-iam-policies>
    const OWNED: bool = true;

    /// Whether ARNs say where it is; those of IAM don't.
    ///
    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html#identifiers-arns>
    const IN_REGION: bool = true;

    /// The ARN of the one with this id in ARNs; an identifier that is an ARN is itself.
    fn arn_at(scope: &Scope, id: &str) -> Arn {
        Self::Id::FORM.arn(id).unwrap_or_else(|| {
            let region = if Self::IN_REGION { &scope.region } else { "" };
            let account = if Self::OWNED { &scope.account } else { "" };
            Arn::new(Self::SERVICE, region, account, Self::TYPE, id)
        })
    }

    /// Its ARN; a key pair's has its name.
    fn arn(&self) -> Arn {
        let own = Self::Id::FORM.arn(self.described_id().as_ref());
        own.unwrap_or_else(|| Self::arn_at(self.home(), self.id()))
    }

    /// What policies may ask of it beside its tags, as `ec2:InstanceType`.
    ///
    /// <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html>
    fn condition_keys(&self) -> Vec<(ConditionKey, String)>;
}

/// A part of a resource that has an ARN and tags of its own, but no record.
pub trait Part: Identifier {
    /// What it is a part of.
    type Whole: Described;
    /// What ARNs and `TagSpecification`s call it.
    const TYPE: &'static str;
    /// Finds the whole by it.
    const INDEX: Index<Self::Whole>;

    /// The ARN of the one with this id.
    fn arn_at(scope: &Scope, id: &str) -> Arn {
        let service = Self::Whole::SERVICE;
        Arn::new(service, &scope.region, &scope.account, Self::TYPE, id)
    }
}

/// A resource that others than its owner may see: the one door between accounts.
pub trait Visible: Described {
    /// Whether it can be seen from there.
    fn visible_from(&self, scope: &Scope) -> bool;
}

/// Makes a record type one of an account and a region: it has a field `scope`.
/// `authority` is what a call must be authorized for to write it; `refers` has indexes
/// that stand beside `indexes`, each with the resource that its keys name.
macro_rules! regional {
    ($resource:ident {
        kind: $kind:literal, key: $key:ident, indexes: [$($index:ident),* $(,)?],
        authority: |$this:ident| $authority:expr
        $(, refers: [$($by:ident => $to:ident),* $(,)?])?
        $(, claim: $claim:ident)?
        $(, version: $version:literal, upgrade: $upgrade:path)? $(,)?
    }) => {
        impl $crate::Resource for $resource {
            const KIND: &'static str = $kind;
            $(const VERSION: u32 = $version;
            fn upgrade(version: u32, record: serde_json::Value) -> Result<serde_json::Value, String> {
                $upgrade(version, record)
            })?
            const INDEXES: &'static [$crate::Index<Self>] = &[$(Self::$index,)* $($(Self::$by,)*)?];
            $(const REFERS: &'static [$crate::Reference<Self>] = &[$($crate::Reference {
                index: Self::$by,
                to: <$crate::$to as $crate::Resource>::KIND,
            }),*];)?
            $(fn claim(&self) -> Option<(&$crate::HostId, $crate::Quota)> {
                self.$claim()
            })?
            fn id(&self) -> &str {
                self.$key.as_ref()
            }
            fn scope(&self) -> Option<&$crate::Scope> {
                Some(&self.scope)
            }
            fn authority(&self) -> $crate::Authority {
                let $this = self;
                $authority
            }
        }
        impl $crate::Regional for $resource {
            fn home(&self) -> &$crate::Scope {
                &self.scope
            }
        }
    };
}

/// Makes a record type one that the whole cloud shares.
///
/// A form that programs of before can't read has a number, `version:`, and a function
/// `upgrade:` that brings older records to it: [`Resource::upgrade`].
macro_rules! shared {
    ($resource:ident {
        kind: $kind:literal, key: |$this:ident| $key:expr,
        owner: |$owned:ident| $owner:expr, authority: |$written:ident| $authority:expr
        $(, version: $version:literal, upgrade: $upgrade:path)? $(,)?
    }) => {
        impl $crate::Resource for $resource {
            const KIND: &'static str = $kind;
            $(const VERSION: u32 = $version;
            fn upgrade(version: u32, record: serde_json::Value) -> Result<serde_json::Value, String> {
                $upgrade(version, record)
            })?
            fn id(&self) -> &str {
                let $this = self;
                $key
            }
            fn scope(&self) -> Option<&$crate::Scope> {
                None
            }
            fn owner(&self) -> Option<&$crate::Scope> {
                let $owned = self;
                $owner
            }
            fn authority(&self) -> $crate::Authority {
                let $written = self;
                $authority
            }
        }
        impl $crate::Shared for $resource {}
    };
}

/// Declares a resource of the API, whole: its identifier and what its record,
/// its ARN, its tags and its errors are called. Its type has the fields `id`,
/// `scope`, and the one that is the key.
///
/// The form of its identifier ([`IdForm`]) is one of
/// ```text
/// id: VolumeId = "vol",                                // EC2's: a prefix and digits
/// id: RoleName = { name: 64, more: "_+=,.@-" },        // a name, of so many characters
/// id: LoadBalancerArn = { arn },                       // an ARN of `service` and `arn`
/// ```
/// `absent` has the words for what isn't there, where they are others than EC2's, and
/// `in_use` those for what can't be deleted.
macro_rules! resource {
    ($resource:ident {
        $(#[$doc:meta])* id: $id:ident = $form:tt,
        kind: $kind:literal,
        key: $key:ident,
        service: $service:literal,
        arn: $arn:literal $(, owned: $owned:literal)? $(, in_region: $in_region:literal)?,
        malformed: $malformed:literal,
        not_found: $not_found:literal,
        noun: $noun:literal,
        $(absent: [$one:literal, $many:literal $(,)?],)?
        $(in_use: $in_use:literal,)?
        indexes: [$($index:ident),* $(,)?]
        $(, refers: [$($by:ident => $to:ident),* $(,)?])?
        $(, claim: $claim:ident)?,
        conditions: $conditions:ident
        $(, version: $version:literal, upgrade: $upgrade:path)? $(,)?
    }) => {
        $crate::ids::identifier! {
            $(#[$doc])* $id = $form of $service $arn,
            $malformed, $not_found, $noun $([$one, $many])?
        }
        $crate::resource::regional! {
            $resource {
                kind: $kind, key: $key, indexes: [BY_ID $(, $index)*],
                authority: |this| $crate::Authority::Own($crate::Described::arn(this))
                $(, refers: [$($by => $to),*])?
                $(, claim: $claim)? $(, version: $version, upgrade: $upgrade)?
            }
        }
        impl $resource {
            /// By its identifier, in whichever scope it is.
            pub const BY_ID: $crate::Index<Self> = $crate::Index {
                name: "id",
                keys: |this, key| key(this.id.as_str()),
            };
        }
        impl $crate::Described for $resource {
            type Id = $id;
            const SERVICE: &'static str = $service;
            const TYPE: &'static str = $arn;
            const IN_USE: &'static str = $crate::resource::in_use!($noun $($in_use)?);
            $(const OWNED: bool = $owned;)?
            $(const IN_REGION: bool = $in_region;)?
            fn described_id(&self) -> &$id {
                &self.id
            }
            fn condition_keys(&self) -> Vec<($crate::ConditionKey, String)> {
                self.$conditions()
            }
        }
    };
}

/// EC2's usual words for a resource that can't be deleted, or those given.
macro_rules! in_use {
    ($noun:literal) => {
        concat!(
            "The ",
            $noun,
            " '{id}' has dependencies and cannot be deleted."
        )
    };
    ($noun:literal $in_use:literal) => {
        $in_use
    };
}

/// Calls a macro with every kind of record there is, the API's resources apart
/// from the rest. A new kind is one word here.
#[macro_export]
macro_rules! each_kind {
    ($then:ident) => {
        $then! {
            described: [ElasticIp, Eni, Image, Instance, KeyPair, LaunchTemplate, SecurityGroup, Subnet, Volume, Vpc],
            others: [
                ClientToken, GroupName, Host, LaunchTemplateName, LaunchTemplateVersion, PrivateAddress, PublicAddress, QuotaGuard, Reachability, Reservation,
                DefaultVpcMark, Tags,
            ],
        }
    };
}

macro_rules! types {
    (described: [$($resource:ident),* $(,)?], others: [$($other:ident),* $(,)?] $(,)?) => {
        /// The list's places, in its order.
        enum Slot { $($resource,)* $($other,)* }
        $(impl Listed for super::$resource {
            const SLOT: usize = Slot::$resource as usize;
        })*
        $(impl Listed for super::$other {
            const SLOT: usize = Slot::$other as usize;
        })*
    };
}

each_kind!(types);

pub(crate) use {in_use, regional, resource, shared};

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Thing {
        id: String,
        scope: Scope,
    }

    impl Listed for Thing {
        const SLOT: usize = usize::MAX;
    }

    regional! {
        Thing {
            kind: "things", key: id, indexes: [], authority: |this| Authority::Own(Arn::root(&this.id)),
            version: 3, upgrade: Thing::newer,
        }
    }

    impl Thing {
        fn newer(version: u32, record: Value) -> Result<Value, String> {
            Ok(serde_json::json!([version, record]))
        }
    }

    #[test]
    fn a_kind_says_which_form_it_has_and_how_to_come_to_it() {
        assert_eq!(Thing::VERSION, 3);
        let newer = <Thing as Resource>::upgrade(1, Value::Null).unwrap();
        assert_eq!(newer, serde_json::json!([1, null]));
    }
}
