//! What the tests of saved states share: states that somebody has tampered with.

use proptest::prelude::*;
use serde_json::{Value, json};

/// What is written over some values of a state, each by its place among all.
pub(crate) type Changes = Vec<(prop::sample::Index, Value)>;

/// A few values written over by others, which are mostly numbers, and mostly of a width
/// that a register has.
pub(crate) fn changes() -> impl Strategy<Value = Changes> {
    let value = prop_oneof![
        any::<u64>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<u8>().prop_map(Value::from),
        (0u8..4).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        Just(json!([])),
        any::<String>().prop_map(Value::from),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), value), 1..4)
}

/// The state with these changes.
pub(crate) fn changed(mut state: Value, changes: Changes) -> Value {
    for (place, value) in changes {
        let mut places = Vec::new();
        leaves(&state, "", &mut places);
        let place: &String = place.get(&places);
        *state.pointer_mut(place).expect("a place") = value;
    }
    state
}

/// Every place in a value that holds no other.
fn leaves(value: &Value, place: &str, found: &mut Vec<String>) {
    match value {
        Value::Array(list) if !list.is_empty() => {
            for (index, value) in list.iter().enumerate() {
                leaves(value, &format!("{place}/{index}"), found);
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                leaves(value, &format!("{place}/{name}"), found);
            }
        }
        _ => found.push(place.to_owned()),
    }
}
