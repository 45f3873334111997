//! Templates: a machine that is saved before it is anybody's, and machines that go on from
//! there, each as one of its own.
//!
//! ```text
//!   --template 2 ── kernel ── initramfs, which holds ── pause, snapshot ──► folder
//!                                                                     ┌───────┘
//!   --restore ── identity written ── disk, interface plugged ── new generation id ── resume
//! ```
//! A kernel reads what the tables say the machine is when it boots, and keeps copies of it
//! (`dmi_save_uuid` and `dmi_save_ident` of Linux): to write the tables anew would not do.
//! So a template's UUID and asset tag are found nowhere else, by which they are found in
//! memory as it is saved, in each form that tables and kernels have them in; and whoever
//! goes on from there has its own written over them. What else the tables say (who made the
//! machine, which model it is) must be the template's.
//!
//! Where the places are comes from a file, and is believed as little as the rest of it: at
//! each of them there is what the template was called, or nothing is written.

use std::io;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::{Error, Machine};
use crate::memory::Ram;
use crate::smbios::{Identity, Uuid};
use crate::snapshot::Refused;

/// The most places where memory may have a template's identity. Linux has eight.
const MAX_PLACES: usize = 256;

/// What a template is called, and where in memory that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateV1 {
    manufacturer: String,
    product: String,
    uuid: String,
    asset_tag: String,
    places: Vec<PlaceV1>,
}

/// Where it is called something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceV1 {
    /// Which of [`Identity::own`].
    form: usize,
    /// The guest address of its first byte.
    address: u64,
}

/// Looks for what a machine is called in its memory.
pub(super) fn find(memory: &Ram, identity: &Identity) -> Result<TemplateV1, Refused> {
    let own = identity.own();
    let forms: Vec<&[u8]> = own.iter().map(Vec::as_slice).collect();
    let refuse = |error: io::Error| Refused::because(format!("its identity: {error}"));
    let found = memory.find(&forms, MAX_PLACES).map_err(refuse)?;
    let places = found.into_iter();
    Ok(TemplateV1 {
        places: places
            .map(|(form, address)| PlaceV1 { form, address })
            .collect(),
        ..TemplateV1::called(identity)
    })
}

impl TemplateV1 {
    /// What it is called, and no place.
    fn called(identity: &Identity) -> Self {
        Self {
            manufacturer: identity.manufacturer.clone(),
            product: identity.product.clone(),
            uuid: identity.uuid.to_string(),
            asset_tag: identity.asset_tag.clone(),
            places: Vec::new(),
        }
    }

    /// Has memory say that the machine is another one.
    fn rename(&self, memory: &Ram, to: &Identity) -> Result<(), Refused> {
        let refuse = |wrong: String| Err(Refused::because(wrong));
        let (has, wants) = (
            (&self.manufacturer, &self.product),
            (&to.manufacturer, &to.product),
        );
        if has != wants {
            return refuse(format!(
                "the template is one of {has:?}, and here {wants:?}"
            ));
        }
        let (has, wants) = (self.asset_tag.len(), to.asset_tag.len());
        if has != wants {
            return refuse(format!(
                "the template's asset tag has {has} bytes, and here {wants}"
            ));
        }
        let Some(uuid) = Uuid::parse(&self.uuid) else {
            return refuse(format!("{:?} is no UUID", self.uuid));
        };
        if self.places.len() > MAX_PLACES {
            return refuse(format!("there are more than {MAX_PLACES} places"));
        }
        let from = Identity {
            uuid,
            asset_tag: self.asset_tag.clone(),
            ..to.clone()
        };
        let (from, to) = (from.own(), to.own());
        for PlaceV1 { form, address } in &self.places {
            let (Some(from), Some(to)) = (from.get(*form), to.get(*form)) else {
                return refuse(format!("there is no form {form}"));
            };
            let mut there = vec![0; from.len()];
            let at = GuestAddress(*address);
            let read = memory.read_slice(&mut there, at);
            if read.is_err() || there != *from {
                return refuse(format!("at {address:#x} there is something else"));
            }
            let written = memory.write_slice(to, at);
            written.map_err(|error| Refused::because(error.to_string()))?;
        }
        Ok(())
    }
}

impl Machine {
    /// What is to be saved of a template, but for the places: to look for them takes as long
    /// as memory is large, which is for who writes it to do ([`find`]). Who takes over the
    /// machine itself has no need of them.
    pub(super) fn save_template(&self) -> Option<TemplateV1> {
        self.template.map(|_| TemplateV1::called(&self.identity))
    }

    /// Whether it is a template here if it was one in another process, and called the same:
    /// by that, it is found in memory when it is saved.
    pub(super) fn is_same_template(&self, saved: Option<&TemplateV1>) -> Result<(), Refused> {
        let here = &self.identity;
        let wrong = match (saved, self.template) {
            (None, None) => return Ok(()),
            (Some(_), None) => "it is a template, and here there is no --template",
            (None, Some(_)) => "it is no template, and here there is --template",
            (Some(saved), Some(_)) => {
                let has = (&saved.manufacturer, &saved.product, &saved.asset_tag);
                let wants = (&here.manufacturer, &here.product, &here.asset_tag);
                if has == wants && saved.uuid == here.uuid.to_string() {
                    return Ok(());
                }
                "it is a template of another --smbios"
            }
        };
        Err(Refused::because(wrong))
    }

    /// Is called what it was started as, where it goes on from a template.
    pub(super) fn take_name(&self, template: Option<&TemplateV1>) -> Result<(), Error> {
        let Some(template) = template else {
            return Ok(());
        };
        let renamed = template.rename(&self.memory, &self.identity);
        renamed.map_err(|refused| Error::Restore(refused.within("its identity")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(first: &str, asset_tag: &str) -> Identity {
        let uuid = format!("ec2{first}-0102-0304-0506-0708090a0b0c");
        Identity {
            manufacturer: "Amazon EC2".to_owned(),
            product: "t3.micro".to_owned(),
            uuid: Uuid::parse(&uuid).expect("a UUID"),
            asset_tag: asset_tag.to_owned(),
        }
    }

    fn memory() -> Ram {
        Ram::private(&[(0, 1 << 20)]).expect("memory")
    }

    #[test]
    fn whoever_goes_on_is_called_by_its_own_name_in_every_place() {
        let placeholder = identity("aaaaa", "i-00000000000000000");
        let mine = identity("bbbbb", "i-0123456789abcdef0");
        let memory = memory();
        let put = |identity: &Identity| {
            for (place, form) in (1u64..).zip(identity.own()) {
                let at = GuestAddress(0x1ff0 * place);
                memory.write_slice(&form, at).expect("there");
            }
        };
        put(&placeholder);
        let found = find(&memory, &placeholder).expect("found");
        assert_eq!(found.places.len(), placeholder.own().len());
        let json = serde_json::to_string(&found).expect("JSON");
        assert_eq!(
            serde_json::from_str::<TemplateV1>(&json).expect("read"),
            found
        );
        found.rename(&memory, &mine).expect("renamed");
        assert_eq!(find(&memory, &placeholder).expect("looked").places, []);
        let there = find(&memory, &mine).expect("found");
        assert_eq!(there.places, found.places);
        // What it was is not there a second time.
        assert!(found.rename(&memory, &mine).is_err());
    }

    #[test]
    fn what_somebody_made_up_is_refused() {
        let placeholder = identity("aaaaa", "i-00000000000000000");
        let mine = identity("bbbbb", "i-0123456789abcdef0");
        let memory = memory();
        let place = |form, address| PlaceV1 { form, address };
        let with = |places| TemplateV1 {
            places,
            ..find(&memory, &placeholder).expect("looked")
        };
        let refused = |template: &TemplateV1, to: &Identity| {
            let refused = template.rename(&memory, to);
            refused.expect_err("refused").to_string()
        };
        for places in [
            vec![place(0, 0x1000)],
            vec![place(0, u64::MAX)],
            vec![place(0, (1 << 20) - 1)],
            vec![place(usize::MAX, 0)],
        ] {
            refused(&with(places), &mine);
        }
        let many = with(vec![place(0, 0); MAX_PLACES + 1]);
        assert!(refused(&many, &mine).contains("256"));
        let none = with(Vec::new());
        none.rename(&memory, &mine).expect("nothing to do");
        let uuid = TemplateV1 {
            uuid: "none".to_owned(),
            ..none.clone()
        };
        assert!(refused(&uuid, &mine).contains("no UUID"));
        let long = refused(&none, &identity("bbbbb", "i-0123456789abcdef01"));
        assert!(long.contains("has 19 bytes, and here 20"), "{long}");
        let other = Identity {
            product: "t3.nano".to_owned(),
            ..mine
        };
        assert!(refused(&none, &other).contains("t3.nano"));
    }
}
