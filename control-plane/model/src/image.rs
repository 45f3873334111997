//! Machine images.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ConditionKey, Scope, Visible, condition_key::ec2, resource::resource};

/// How an image's kernel is found and started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BootMethod {
    /// The kernel and initrd lie inside the root file system (ext4, on the
    /// partition given, 1 the first; 0 when the disk is the file system) and
    /// are read out anew at every cold boot. Symbolic links are followed.
    Linux {
        /// The partition's number, or 0.
        partition: u32,
        /// The kernel's path, as `/vmlinuz`.
        kernel: String,
        /// The initrd's path.
        initrd: Option<String>,
        /// The command line.
        cmdline: String,
    },
}

/// The manifest that lies beside an image's root disk, `<name>.json` beside
/// `<name>.raw`: what an image is to whoever brings one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The image's name.
    pub name: String,
    /// In words, for DescribeImages.
    pub description: String,
    /// `x86_64`.
    pub architecture: String,
    /// The root device's name, as `/dev/xvda`.
    pub root_device_name: String,
    /// The user that ssh keys are installed for.
    pub default_user: String,
    /// The root disk's file name, beside the manifest.
    pub disk: String,
    /// The root disk's size in bytes.
    pub disk_size: u64,
    /// The SHA-256 of the root disk, hexadecimal.
    pub sha256: String,
    /// When it was built.
    pub created: Timestamp,
    /// How it boots.
    pub boot: BootMethod,
    /// Whether its initramfs holds for the word `hearth.hold`, so that instances can go
    /// on from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warm: bool,
}

/// A registered image. Its id is made from its SHA-256, so that the same disk
/// is the same AMI everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// What came with it.
    pub manifest: Manifest,
}

resource! {
    Image {
        /// A machine image's identifier.
        id: ImageId = "ami",
        kind: "images",
        key: id,
        service: "ec2",
        arn: "image",
        owned: false,
        malformed: "InvalidAMIID.Malformed",
        not_found: "InvalidAMIID.NotFound",
        noun: "image id",
        // EC2 prints the list, even if there is one in it.
        absent: [
            "The image id '[{ids}]' does not exist",
            "The image ids '[{ids}]' do not exist",
        ],
        indexes: [],
        conditions: conditions,
    }
}

impl Image {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        vec![
            (ec2::IMAGE_ID, self.id.to_string()),
            (ec2::IMAGE_TYPE, "machine".to_owned()),
            (ec2::OWNER, self.scope.account.clone()),
            (ec2::PUBLIC, "true".to_owned()),
            (ec2::ROOT_DEVICE_TYPE, "ebs".to_owned()),
        ]
    }
}

impl Visible for Image {
    /// Every image is public in its region.
    fn visible_from(&self, scope: &Scope) -> bool {
        self.scope.region == scope.region
    }
}
