//! The attributes that can't be changed here, and may be set to what they are.

use super::{Flag, Request, Text};
use crate::{
    model::{Instance, Reservation},
    store::Scoped,
};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fixed {
    DisableApiStop,
    EbsOptimized,
    EnaSupport,
    EnclaveOptions,
    InstanceType,
    UserData,
}

impl Fixed {
    pub(super) const ALL: [Self; 6] = [
        Self::DisableApiStop,
        Self::EbsOptimized,
        Self::EnaSupport,
        Self::EnclaveOptions,
        Self::InstanceType,
        Self::UserData,
    ];

    /// As `Attribute` calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::DisableApiStop => "disableApiStop",
            Self::EbsOptimized => "ebsOptimized",
            Self::EnaSupport => "enaSupport",
            Self::EnclaveOptions => "enclaveOptions",
            Self::InstanceType => "instanceType",
            Self::UserData => "userData",
        }
    }

    /// As the parameter of its own is called.
    pub(super) fn parameter(self) -> &'static str {
        match self {
            Self::DisableApiStop => "DisableApiStop",
            Self::EbsOptimized => "EbsOptimized",
            Self::EnaSupport => "EnaSupport",
            Self::EnclaveOptions => "EnclaveOptions",
            Self::InstanceType => "InstanceType",
            Self::UserData => "UserData",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fixed| fixed.name() == name)
    }

    /// What a request gives it by its own parameter.
    pub(super) fn given(self, request: &Request) -> Option<String> {
        let flag = |flag: &Option<Flag>| flag.as_ref().map(|flag| flag.value.to_string());
        let text = |text: &Option<Text>| text.as_ref().map(|text| text.value.clone());
        match self {
            Self::DisableApiStop => flag(&request.disable_api_stop),
            Self::EbsOptimized => flag(&request.ebs_optimized),
            Self::EnaSupport => flag(&request.ena_support),
            Self::EnclaveOptions => request
                .enclave_options
                .as_ref()
                .map(|enclaves| enclaves.enabled.to_string()),
            Self::InstanceType => text(&request.instance_type),
            Self::UserData => text(&request.user_data),
        }
    }

    /// What it is.
    pub(super) fn value(self, view: Scoped<'_>, instance: &Instance) -> String {
        match self {
            Self::DisableApiStop | Self::EbsOptimized | Self::EnaSupport | Self::EnclaveOptions => {
                "false".to_owned()
            }
            Self::InstanceType => instance.instance_type.clone(),
            Self::UserData => view
                .get::<Reservation>(&instance.reservation)
                .and_then(|reservation| reservation.user_data.clone())
                .unwrap_or_default(),
        }
    }
}
