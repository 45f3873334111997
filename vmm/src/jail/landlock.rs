//! Landlock: what is left of the file system, said once more to the kernel, and
//! the one layer of this kind that an ordinary user can put up
//! (Documentation/userspace-api/landlock.rst).

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest version whose rights we know; older kernels take what they know.
const NEWEST: ABI = ABI::V6;

/// Restricts this thread and those it makes to files in these folders. No TCP, no
/// abstract socket and no signal reaches out. False: the kernel has no Landlock.
///
/// # Errors
/// When the kernel has it and refuses.
pub(super) fn restrict(folders: &[PathBuf]) -> Result<bool, RulesetError> {
    let files = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::RemoveFile;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for folder in folders {
        // One that went away needs no right.
        if let Ok(folder) = PathFd::new(folder) {
            rules = rules.add_rule(PathBeneath::new(folder, files))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}
