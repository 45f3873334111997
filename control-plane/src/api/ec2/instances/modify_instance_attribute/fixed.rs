//! The attributes that are false here, and may be set to that.

use super::{Flag, Request};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fixed {
    EbsOptimized,
    EnaSupport,
    EnclaveOptions,
}

impl Fixed {
    pub(super) const ALL: [Self; 3] = [Self::EbsOptimized, Self::EnaSupport, Self::EnclaveOptions];

    /// As `Attribute` calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::EbsOptimized => "ebsOptimized",
            Self::EnaSupport => "enaSupport",
            Self::EnclaveOptions => "enclaveOptions",
        }
    }

    /// As the parameter of its own is called.
    pub(super) fn parameter(self) -> &'static str {
        match self {
            Self::EbsOptimized => "EbsOptimized",
            Self::EnaSupport => "EnaSupport",
            Self::EnclaveOptions => "EnclaveOptions",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fixed| fixed.name() == name)
    }

    /// What a request gives it by its own parameter.
    pub(super) fn given(self, request: &Request) -> Option<String> {
        let flag = |flag: &Option<Flag>| flag.as_ref().map(|flag| flag.value.to_string());
        match self {
            Self::EbsOptimized => flag(&request.ebs_optimized),
            Self::EnaSupport => flag(&request.ena_support),
            Self::EnclaveOptions => request
                .enclave_options
                .as_ref()
                .map(|enclaves| enclaves.enabled.to_string()),
        }
    }
}
