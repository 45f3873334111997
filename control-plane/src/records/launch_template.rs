//! The end of a launch template, with as many versions as it has: more than one
//! transaction carries. The first marks it, from which on nobody finds it and its name is
//! free; the rest goes in as many as it takes. A crash in between leaves that to the
//! garbage controller.

use crate::{
    model::{LaunchTemplate, LaunchTemplateName, LaunchTemplateVersion},
    store::{Change, Scoped},
};

/// How many versions go in one transaction.
const AT_ONCE: usize = 50;

/// Marks a template for its deletion.
pub fn begin_deletion(view: Scoped<'_>, change: &mut Change<'_>, template: &LaunchTemplate) {
    if let Some(name) = view.get::<LaunchTemplateName>(&template.name) {
        change.delete(name);
    }
    change.update(
        template,
        &LaunchTemplate {
            deleting: true,
            ..template.clone()
        },
    );
}

/// Deletes versions of a template that is marked, and itself with the last ones; whether
/// it went.
pub fn go_on_deleting(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    template: &LaunchTemplate,
) -> bool {
    let mut versions = view.by(LaunchTemplateVersion::BY_TEMPLATE, template.id.as_str());
    versions
        .by_ref()
        .take(AT_ONCE)
        .for_each(|version| change.delete(version));
    if versions.next().is_some() {
        return false;
    }
    change.delete_tagged(template);
    true
}
