//! `hearth-vmm` with real kernels. Needs a KVM that runs them.
