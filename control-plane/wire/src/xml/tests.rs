//! Answers and errors as text, and as an XML reader sees them.

use proptest::prelude::*;
use quick_xml::{Reader, events::Event};

use super::*;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    group_id: String,
    from_port: Option<i32>,
    tag_set: Vec<Tag>,
    names: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tag {
    key: String,
    ok: bool,
}

fn answer() -> Answer {
    Answer {
        group_id: "a<b>&\"c\"\r".into(),
        from_port: None,
        tag_set: vec![Tag {
            key: "k".into(),
            ok: true,
        }],
        names: None,
    }
}

#[test]
fn ec2_answers() {
    assert_eq!(
        response(
            Protocol::Ec2,
            "http://ns/",
            "Do",
            "req",
            &answer(),
            usize::MAX
        )
        .unwrap(),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DoResponse xmlns=\"http://ns/\">\
         <requestId>req</requestId><groupId>a&lt;b&gt;&amp;&quot;c&quot;&#xD;</groupId>\
         <tagSet><item><key>k</key><ok>true</ok></item></tagSet></DoResponse>"
    );
}

#[test]
fn query_answers() {
    let mut answer = answer();
    answer.group_id = "g".into();
    assert_eq!(
        response(
            Protocol::Query,
            "http://ns/",
            "Do",
            "req",
            &answer,
            usize::MAX
        )
        .unwrap(),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DoResponse xmlns=\"http://ns/\"><DoResult>\
         <groupId>g</groupId><tagSet><member><key>k</key><ok>true</ok></member></tagSet>\
         </DoResult><ResponseMetadata><RequestId>req</RequestId></ResponseMetadata></DoResponse>"
    );
}

#[test]
fn errors_in_both_protocols() {
    assert_eq!(
        error(Protocol::Ec2, "", "req", "C", "<m>", true),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>C</Code>\
         <Message>&lt;m&gt;</Message></Error></Errors><RequestID>req</RequestID></Response>"
    );
    assert_eq!(
        error(Protocol::Query, "ns", "req", "C", "m", false),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ErrorResponse xmlns=\"ns\"><Error>\
         <Type>Receiver</Type><Code>C</Code><Message>m</Message></Error>\
         <RequestId>req</RequestId></ErrorResponse>"
    );
}

#[test]
fn an_answer_has_an_end() {
    let of = |most| response(Protocol::Ec2, "", "A", "", &answer(), most);
    let whole = of(usize::MAX).unwrap();
    // All that is short of its last text is too short.
    let last = whole.find("<ok>").unwrap();
    assert_eq!(of(last).as_ref(), Ok(&whole));
    assert_eq!(of(last - 1), Err(XmlError::TooLong));
}

#[test]
fn what_has_no_form_is_an_error() {
    let map = std::collections::BTreeMap::from([("a", 1)]);
    assert!(response(Protocol::Ec2, "", "A", "", &map, usize::MAX).is_err());
    assert!(response(Protocol::Ec2, "", "A", "", &1, usize::MAX).is_err());
    assert!(response(Protocol::Ec2, "", "A", "", &vec![1], usize::MAX).is_err());

    struct Bytes;
    impl Serialize for Bytes {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_bytes(b"x")
        }
    }
    #[derive(Serialize)]
    struct Of<T> {
        a: T,
    }
    #[derive(Serialize)]
    enum Data {
        Some(i32),
    }
    let error = response(Protocol::Ec2, "", "A", "", &Of { a: Bytes }, usize::MAX).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a byte string has no form on the wire (in a)"
    );
    assert!(
        response(
            Protocol::Ec2,
            "",
            "A",
            "",
            &Of { a: Data::Some(1) },
            usize::MAX
        )
        .is_err()
    );
}

#[test]
fn what_is_wrapped_is_written_as_what_is_in_it() {
    #[derive(Serialize)]
    struct Id(&'static str);
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    enum State {
        ShuttingDown,
    }
    #[derive(Serialize)]
    struct Answer {
        id: Option<Id>,
        none: Option<Id>,
        state: State,
    }
    let answer = Answer {
        id: Some(Id("i-1")),
        none: None,
        state: State::ShuttingDown,
    };
    let text = response(Protocol::Ec2, "ns", "A", "r", &answer, usize::MAX).unwrap();
    let expected = "<id>i-1</id><state>shutting-down</state></AResponse>";
    assert!(text.ends_with(expected), "{text}");
}

/// The text of every leaf element, as an XML reader sees it.
fn leaves(xml: &str) -> Vec<String> {
    let mut reader = Reader::from_str(xml);
    let (mut found, mut current) = (Vec::new(), None::<String>);
    loop {
        match reader.read_event().unwrap() {
            Event::Start(_) => current = Some(String::new()),
            Event::Text(t) => {
                if let Some(c) = &mut current {
                    c.push_str(&t);
                }
            }
            Event::GeneralRef(r) => {
                let c = match r.resolve_char_ref().unwrap() {
                    Some(c) => c,
                    None => match &*r {
                        "amp" => '&',
                        "lt" => '<',
                        "gt" => '>',
                        "quot" => '"',
                        other => panic!("{other}"),
                    },
                };
                current.as_mut().unwrap().push(c);
            }
            Event::End(_) => found.extend(current.take()),
            Event::Eof => return found,
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn text_survives_where_xml_can_carry_it(
        text in "[\\PC\\t\\n\\r\\x00-\\x08<>&\"']{0,40}",
    ) {
        #[derive(Serialize)]
        struct One { value: String }
        let answer = response(Protocol::Ec2, "ns", "A", "r", &One { value: text.clone() }, usize::MAX);
        match answer {
            Ok(xml) => prop_assert_eq!(leaves(&xml), vec!["r".to_owned(), text.clone()]),
            Err(_) => prop_assert!(!text.chars().all(carriable)),
        }
        // An error is told whatever is in it.
        let xml = error(Protocol::Ec2, "", "r", "C", &text, true);
        let spelled = text.chars().fold(String::new(), |mut out, c| {
            if carriable(c) { out.push(c) } else { out.extend(c.escape_unicode()) }
            out
        });
        prop_assert_eq!(leaves(&xml), vec!["C".to_owned(), spelled, "r".to_owned()]);
    }
}
