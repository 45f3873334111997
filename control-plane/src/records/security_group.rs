//! The end of a security group, in two transactions: the first marks it, so that
//! nothing begins to refer to it any more; the second deletes it if nothing did
//! by then. So what refers to a group only depends on its record, and need not
//! write it: a launch is no write of its groups.

use crate::{
    model::{GroupName, SecurityGroup},
    store::{Change, Scoped},
};

/// Deletes a group that is marked for it, or takes the mark back if something
/// refers to it after all; whether it went. A crash between mark and deletion
/// leaves this to the garbage controller.
pub fn finish_deletion(view: Scoped<'_>, change: &mut Change<'_>, group: &SecurityGroup) -> bool {
    if !group.deleting {
        // Somebody else took the mark back.
        return false;
    }
    if view.is_referred_to(group) {
        change.update(
            group,
            &SecurityGroup {
                deleting: false,
                ..group.clone()
            },
        );
        return false;
    }
    change.delete(&GroupName::of(group));
    change.delete_tagged(group);
    for rule in &group.rules {
        change.delete_part_tags(group, &rule.id);
    }
    true
}
