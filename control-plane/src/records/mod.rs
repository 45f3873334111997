//! What handlers and reconcilers alike do with records: functions of the view
//! and the change alone, pure but for those.

pub mod default_vpc;
pub mod elastic_ip;
pub mod launch;
pub mod launch_template;
pub mod security_group;
