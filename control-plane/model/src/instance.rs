//! Instances and their life.
//!
//! ```text
//!            RunInstances
//!                 │
//!             pending ──────────────► running ◄─────────┐
//!                 │ (launch failed)   │  │  │           │ up again
//!                 │      StopInstances│  │  │Terminate  │
//!                 │                   ▼  │  │        pending
//!                 │             stopping │  │           ▲ StartInstances
//!                 │                   │  │  │           │
//!                 │                   ▼  │  ▼           │
//!                 │              stopped ┼──┼───────────┘
//!                 ▼                   │  ▼
//!             terminated ◄───── shutting-down
//! ```
//! One that is stopped by hibernation is `stopped` as any other; what is kept of it is
//! its memory, out of which the next start goes on ([`Instance::hibernated`]).
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html>

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    BootMethod, ConditionKey, EniId, HostId, ImageId, Index, InstanceType, Quota, Reservation,
    ReservationId, Scope, SubnetId, VolumeId, VpcId,
    condition_key::ec2,
    resource::{in_time, resource},
};

/// What EC2 reports of an instance's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Being placed and booted.
    Pending,
    /// Its VMM runs.
    Running,
    /// Being terminated.
    ShuttingDown,
    /// Gone; the record stays for an hour so that it can be asked for.
    Terminated,
    /// Asked to power down.
    Stopping,
    /// Has no VMM; keeps its volumes and its private address.
    Stopped,
}

impl InstanceState {
    /// EC2's number of the state (`InstanceState.Code`).
    pub fn code(self) -> u16 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }

    /// Whether an instance in this state takes from its host's quota. Its volumes
    /// do in every state, for as long as they are there.
    pub fn occupies(self) -> bool {
        !matches!(self, Self::Stopped | Self::Terminated)
    }

    /// EC2's name of the state (`InstanceState.Name`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// What the user last asked for; the reconciler moves the state toward it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// RunInstances or StartInstances.
    Run,
    /// StopInstances: power button, then force after a grace period.
    Stop,
    /// StopInstances with `Force`: no power button.
    ForceStop,
    /// StopInstances with `Hibernate`: its memory is saved first.
    Hibernate,
    /// TerminateInstances, or a launch that failed.
    Terminate,
}

/// What the instance does when its guest powers itself off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownBehavior {
    /// It becomes `stopped`.
    Stop,
    /// It becomes `terminated`.
    Terminate,
}

impl ShutdownBehavior {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Stop, Self::Terminate];

    /// EC2's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Terminate => "terminate",
        }
    }
}

/// Why an instance changed its state (`StateReason`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReason {
    /// EC2's code, as `Client.UserInitiatedShutdown` or `Server.InternalError`.
    pub code: String,
    /// The reason in words.
    pub message: String,
}

impl StateReason {
    /// StopInstances or TerminateInstances asked for it.
    pub fn user_initiated() -> Self {
        Self::new("Client.UserInitiatedShutdown", "User initiated shutdown")
    }

    /// StopInstances asked for it, with `Hibernate`.
    pub fn user_initiated_hibernate() -> Self {
        Self::new("Client.UserInitiatedHibernate", "User initiated hibernate")
    }

    /// It was to be hibernated, and was stopped; why.
    pub fn not_hibernated(why: &str) -> Self {
        let message = format!("The instance was stopped and not hibernated: {why}");
        Self::internal_error(&message)
    }

    /// The guest powered itself off.
    pub fn instance_initiated() -> Self {
        Self::new(
            "Client.InstanceInitiatedShutdown",
            "Instance initiated shutdown",
        )
    }

    /// What the caller gave can't be run, as an image that doesn't boot.
    pub fn client_error(detail: &str) -> Self {
        Self::new("Client.InternalError", detail)
    }

    /// The host or the VMM failed.
    pub fn internal_error(detail: &str) -> Self {
        Self::new("Server.InternalError", detail)
    }

    /// The subnet's addresses had run out when it came to be made.
    pub fn no_private_address() -> Self {
        Self::new(
            "Client.InsufficientFreeAddressesInSubnet",
            "There are not enough free addresses in the subnet",
        )
    }

    /// The pool's addresses had run out when it came to be made.
    pub fn no_public_address() -> Self {
        Self::new(
            "Server.InsufficientAddressCapacity",
            "There are no free addresses in the pool of public addresses",
        )
    }

    /// The call that launched it was answered with an error: the other instances of
    /// the same call could not be made.
    pub fn launch_refused() -> Self {
        Self::new(
            "Server.InternalError",
            "The launch that it was part of could not be carried out",
        )
    }

    /// No host had room any more when it came to be placed.
    pub fn insufficient_capacity() -> Self {
        Self::new(
            "Server.InsufficientInstanceCapacity",
            "Insufficient capacity to place the instance",
        )
    }

    /// EC2's messages begin with their code.
    fn new(code: &str, message: &str) -> Self {
        Self {
            code: code.to_owned(),
            message: format!("{code}: {message}"),
        }
    }
}

/// `MetadataOptions`: how the instance may ask its metadata service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataOptions {
    /// `HttpEndpoint`: whether the service answers at all.
    pub enabled: bool,
    /// `HttpTokens=required`: whether IMDSv1 is refused.
    pub tokens_required: bool,
    /// `HttpPutResponseHopLimit`, 1 to 64: the IP TTL of a token's answer.
    pub hop_limit: u8,
    /// `InstanceMetadataTags`: whether tags are shown in the tree.
    pub tags_enabled: bool,
}

impl Default for MetadataOptions {
    /// What an instance has whose launch says nothing of it.
    fn default() -> Self {
        Self {
            enabled: true,
            tokens_required: false,
            hop_limit: 1,
            tags_enabled: false,
        }
    }
}

impl MetadataOptions {
    /// What they say to the conditions of policies, which ask for IMDSv2 by them:
    /// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ExamplePolicies_EC2.html#iam-example-instance-metadata>
    pub fn conditions(&self) -> [(ConditionKey, String); 4] {
        let choice = |yes, [no, name]: [&str; 2]| if yes { name } else { no }.to_owned();
        let switch = ["disabled", "enabled"];
        let tokens = choice(self.tokens_required, ["optional", "required"]);
        [
            (
                ec2::INSTANCE_METADATA_TAGS,
                choice(self.tags_enabled, switch),
            ),
            (ec2::METADATA_HTTP_ENDPOINT, choice(self.enabled, switch)),
            (
                ec2::METADATA_HTTP_PUT_RESPONSE_HOP_LIMIT,
                self.hop_limit.to_string(),
            ),
            (ec2::METADATA_HTTP_TOKENS, tokens),
        ]
    }
}

/// A reboot under way: what tells, to whoever looks later, whether it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reboot {
    /// When the guest was first asked.
    pub since: Timestamp,
    /// How often the VMM had been reset before.
    pub resets: u64,
}

/// What a launch says of how its instances behave. Each of them keeps it, and the calls
/// that modify an instance change it: a parameter of RunInstances that is nothing but
/// this is one more field here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What the guest's own power-off leads to.
    pub on_shutdown: ShutdownBehavior,
    /// How it may ask for metadata.
    pub metadata: MetadataOptions,
    /// Termination protection.
    pub protected: bool,
    /// Protection from being stopped, and so from being terminated as well.
    #[serde(default)]
    pub stop_protected: bool,
    /// `HibernationOptions.Configured`: whether it may be hibernated. Room for its memory
    /// is set aside on its host's disk then.
    #[serde(default)]
    pub may_hibernate: bool,
}

impl Default for Settings {
    /// What an instance has whose launch says nothing.
    fn default() -> Self {
        Self {
            on_shutdown: ShutdownBehavior::Stop,
            metadata: MetadataOptions::default(),
            protected: false,
            stop_protected: false,
            may_hibernate: false,
        }
    }
}

/// An instance: what was asked for and where its life stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The call that made it.
    pub reservation: ReservationId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its index among the instances of its reservation.
    pub launch_index: u32,
    /// The image its root volume came from.
    pub image: ImageId,
    /// How it boots, as its image said when it first ran: the image may go while
    /// the instance lives.
    #[serde(default)]
    pub boot: Option<BootMethod>,
    /// The name of its instance type.
    pub instance_type: String,
    /// The name of its key pair.
    pub key_name: Option<String>,
    /// The public key in OpenSSH's one-line form, as it was at launch: a key
    /// pair may be deleted while the instance lives.
    pub public_key: Option<String>,
    /// Its VPC.
    pub vpc: VpcId,
    /// The subnet of its primary interface.
    pub subnet: SubnetId,
    /// The availability zone.
    pub zone: String,
    /// The host that runs it, once placed.
    pub host: Option<HostId>,
    /// Its interfaces, the primary first.
    pub enis: Vec<EniId>,
    /// Its root volume.
    pub root_volume: VolumeId,
    /// The root device's name, as `/dev/xvda`.
    pub root_device_name: String,
    /// The caller's idempotency token.
    pub client_token: Option<String>,
    /// When it was last launched or started.
    pub launched_at: Timestamp,
    /// What its launch said of it, and may be changed.
    #[serde(flatten)]
    pub settings: Settings,
    /// User data that it was given after its launch, base64; that of its reservation
    /// where there is none. Empty: it has none any more.
    pub own_user_data: Option<String>,
    /// The boot that ended in hibernation, for as long as its memory is to be gone on from.
    /// The host keeps that, and gives it to one VMM at most.
    pub hibernated: Option<u64>,
    /// What the user last asked for.
    pub intent: Intent,
    /// Where its life stands.
    pub state: InstanceState,
    /// When `state` last changed.
    pub state_since: Timestamp,
    /// Why it changed last.
    pub state_reason: Option<StateReason>,
    /// The human half of that (`StateTransitionReason`), empty when none.
    pub transition_reason: String,
    /// How often it was asked to reboot; the reconciler follows in `reboots_done`.
    pub reboots_asked: u64,
    /// How many of those the VMM has carried out.
    pub reboots_done: u64,
    /// The reboot that is under way.
    #[serde(default)]
    pub reboot: Option<Reboot>,
    /// How many times it has been started from cold: 1 for the first boot.
    pub boots: u64,
}

resource! {
    Instance {
        /// An instance's identifier.
        id: InstanceId = "i",
        kind: "instances",
        key: id,
        service: "ec2",
        arn: "instance",
        malformed: "InvalidInstanceID.Malformed",
        not_found: "InvalidInstanceID.NotFound",
        noun: "instance ID",
        indexes: [BY_HOST, BY_RESERVATION, BY_STATE, BY_VPC_AND_HOST, UNPLACED],
        claim: taken,
        conditions: conditions,
        version: 3, upgrade: Instance::upgrade,
    }
}

impl Instance {
    /// In the first form none could be hibernated: a program that reads no other would boot
    /// from cold what is hibernated, and forget that anything may be. In the second none
    /// could be protected from a stop or given other user data, and both would be forgotten.
    fn upgrade(version: u32, mut record: Value) -> Result<Value, String> {
        let fields = record.as_object_mut().filter(|_| [1, 2].contains(&version));
        let fields = fields.ok_or_else(|| format!("it has no version {version}"))?;
        if version == 1 {
            fields.insert("may_hibernate".to_owned(), false.into());
            fields.insert("hibernated".to_owned(), Value::Null);
        }
        fields.insert("stop_protected".to_owned(), false.into());
        fields.insert("own_user_data".to_owned(), Value::Null);
        Ok(record)
    }

    /// Its user data, base64: its own, or what its `reservation` gave all of its instances.
    pub fn user_data<'a>(&'a self, reservation: Option<&'a Reservation>) -> Option<&'a str> {
        let launched_with = || reservation?.user_data.as_deref();
        let own = self.own_user_data.as_deref();
        own.or_else(launched_with).filter(|text| !text.is_empty())
    }

    /// What it needs of its host, its volumes aside. A type that this version no
    /// longer knows needs more than any host has.
    pub fn quota(&self) -> Quota {
        InstanceType::find(&self.instance_type).map_or(Quota::UNKNOWN, InstanceType::quota)
    }

    /// What every instance here says to the conditions of policies.
    pub const FIXED_CONDITIONS: [(ConditionKey, &str); 4] = [
        (ec2::EBS_OPTIMIZED, "false"),
        (ec2::INSTANCE_MARKET_TYPE, "on-demand"),
        (ec2::ROOT_DEVICE_TYPE, "ebs"),
        (ec2::TENANCY, "default"),
    ];

    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        let own = [
            (ec2::AVAILABILITY_ZONE, self.zone.clone()),
            (ec2::AVAILABILITY_ZONE_ID, crate::zone_id(&self.zone)),
            (ec2::INSTANCE_ID, self.id.to_string()),
            (ec2::INSTANCE_TYPE, self.instance_type.clone()),
        ];
        let alike = Self::FIXED_CONDITIONS.map(|(key, value)| (key, value.to_owned()));
        let metadata = self.settings.metadata.conditions();
        own.into_iter().chain(alike).chain(metadata).collect()
    }

    /// The room that is set aside on its host's disk for its memory, in every state but
    /// the last.
    pub fn room_for_memory(&self) -> Quota {
        let kind = InstanceType::find(&self.instance_type);
        match kind
            .filter(|_| self.settings.may_hibernate && self.state != InstanceState::Terminated)
        {
            Some(kind) => Quota {
                disk_gib: kind.memory_gib(),
                ..Quota::default()
            },
            None => Quota::default(),
        }
    }

    fn taken(&self) -> Option<(&HostId, Quota)> {
        let host = self.host.as_ref()?;
        let room = self.room_for_memory();
        let taken = match self.state.occupies() {
            true => self.quota().plus(room),
            false => room,
        };
        (taken != Quota::default()).then_some((host, taken))
    }

    /// By the host that it is on.
    pub const BY_HOST: Index<Self> = Index {
        name: "host",
        keys: |this, key| {
            if let Some(host) = &this.host {
                key(&host.0);
            }
        },
    };
    /// By the call that made it.
    pub const BY_RESERVATION: Index<Self> = Index {
        name: "reservation",
        keys: |this, key| key(this.reservation.as_str()),
    };
    /// By the name of its state.
    pub const BY_STATE: Index<Self> = Index {
        name: "state",
        keys: |this, key| key(this.state.name()),
    };
    /// By its VPC and the host that it is on: [`Self::vpc_and_host`].
    pub const BY_VPC_AND_HOST: Index<Self> = Index {
        name: "vpc-and-host",
        keys: |this, key| {
            if let Some(host) = &this.host {
                key(&Self::vpc_and_host(&this.vpc, host));
            }
        },
    };

    /// The key of that index.
    pub fn vpc_and_host(vpc: &VpcId, host: &HostId) -> String {
        format!("{vpc}/{host}")
    }

    /// Those on no host that are not terminated, in the order that they came.
    pub const UNPLACED: Index<Self> = Index {
        name: "unplaced",
        keys: |this, key| {
            if this.host.is_none() && this.state != InstanceState::Terminated {
                let came = in_time(this.launched_at);
                key(&format!("{came} {:05}", this.launch_index));
            }
        },
    };
}
