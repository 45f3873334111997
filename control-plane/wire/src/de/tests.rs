//! Forms into requests, and what is no request.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Request {
    name: String,
    count: Option<i32>,
    flag: Option<bool>,
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    nested: Option<Nested>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Filter {
    name: String,
    #[serde(default, rename = "Value")]
    values: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Nested {
    port: Option<u16>,
}

fn read(text: &str) -> Result<Request, WireError> {
    from_form(&Form::parse(text.as_bytes()).unwrap(), Protocol::Ec2)
}

fn message(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn a_request_is_read() {
    let request = read(
        "Name=n&Count=-3&Flag=true&InstanceId.2=b&InstanceId.1=a\
         &Filter.1.Name=f&Filter.1.Value.1=v&Nested.Port=65535",
    );
    assert_eq!(
        request.unwrap(),
        Request {
            name: "n".into(),
            count: Some(-3),
            flag: Some(true),
            ids: vec!["a".into(), "b".into()],
            filters: vec![Filter {
                name: "f".into(),
                values: vec!["v".into()]
            }],
            nested: Some(Nested { port: Some(65535) }),
        }
    );
}

#[test]
fn list_elements_are_in_numeric_order() {
    let text: Vec<String> = (1..=11).map(|i| format!("InstanceId.{i}={i}")).collect();
    let request = read(&format!("Name=n&{}", text.join("&"))).unwrap();
    let expected: Vec<String> = (1..=11).map(|i| i.to_string()).collect();
    assert_eq!(request.ids, expected);
}

#[test]
fn errors_name_the_parameter_at_any_depth() {
    #[derive(Debug, Deserialize)]
    #[serde(try_from = "String")]
    struct Colour;
    impl TryFrom<String> for Colour {
        type Error = &'static str;
        fn try_from(_: String) -> Result<Self, Self::Error> {
            Err("it is no colour")
        }
    }
    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Outer {
        #[serde(rename = "Inner")]
        _inner: Option<Inner>,
        #[serde(rename = "List")]
        _list: Vec<String>,
        #[serde(rename = "Colours")]
        _colours: Vec<Colour>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        #[serde(rename = "Innermost")]
        _innermost: Innermost,
    }
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Innermost {
        #[serde(rename = "Name")]
        _name: String,
        #[serde(rename = "Colour")]
        _colour: Option<Colour>,
        #[serde(rename = "Other")]
        _other: Option<String>,
    }
    let message = |text: &str, protocol| {
        let form = Form::parse(text.as_bytes()).unwrap();
        from_form::<Outer>(&form, protocol).unwrap_err().to_string()
    };
    assert_eq!(
        message("Inner.Innermost.Colour=red", Protocol::Ec2),
        "Invalid value for the parameter Inner.Innermost.Colour: it is no colour"
    );
    assert_eq!(
        message("Colours.1=red", Protocol::Ec2),
        "Invalid value for the parameter Colours.1: it is no colour"
    );
    assert_eq!(
        message("Inner.Innermost.Other=x", Protocol::Ec2),
        "The request must contain the parameter Inner.Innermost.Name"
    );
    assert_eq!(
        message("List=a", Protocol::Query),
        "Invalid value for the parameter List: it is a list, whose elements are numbered from 1"
    );
}

#[test]
fn errors_name_the_parameter() {
    assert_eq!(
        message("Name=n&Bogus=1"),
        "The parameter Bogus is not recognized"
    );
    assert_eq!(
        message("Name=n&Filter.1.Name=x&Filter.1.Bogus=1"),
        "The parameter Filter.1.Bogus is not recognized"
    );
    assert_eq!(
        message("Name.1=n"),
        "The parameter Name.1 is not recognized"
    );
    assert_eq!(
        message("Name=n&InstanceId.x=1"),
        "The parameter InstanceId.x is not recognized"
    );
    assert_eq!(
        message("Name=n&InstanceId.01=1"),
        "The parameter InstanceId.01 is not recognized"
    );
    assert_eq!(message(""), "The request must contain the parameter Name");
    assert_eq!(
        message("Name=n&Filter.1.Value.1=x"),
        "The request must contain the parameter Filter.1.Name"
    );
    assert_eq!(
        message("Name=n&Count=abc"),
        "Invalid value for the parameter Count: \"abc\" is not a number in the range allowed"
    );
    assert_eq!(
        message("Name=n&Nested.Port=65536"),
        "Invalid value for the parameter Nested.Port: \"65536\" is not a number in the range allowed"
    );
    assert_eq!(
        message("Name=n&Flag=yes"),
        "Invalid value for the parameter Flag: \"yes\" is neither true nor false"
    );
    assert_eq!(
        message("Name=n&InstanceId.1=a&InstanceId.3=c"),
        "Invalid value for the parameter InstanceId: its elements are not numbered from 1 without a gap"
    );
    assert_eq!(
        message("Name=n&InstanceId=a"),
        "Invalid value for the parameter InstanceId: it is a list, whose elements are numbered from 1"
    );
    assert_eq!(
        message("Name=n&Filter.1=a"),
        "Invalid value for the parameter Filter.1: it is a structure, and has no value of its own"
    );
}

#[test]
fn the_query_protocol_says_member() {
    let form = Form::parse(b"Name=n&InstanceId.member.1=a&Filter=").unwrap();
    let request: Request = from_form(&form, Protocol::Query).unwrap();
    assert_eq!(request.ids, ["a"]);
    assert!(request.filters.is_empty());
    assert!(from_form::<Request>(&form, Protocol::Ec2).is_err());
}

#[test]
fn nothing_is_ignored_even_without_deny_unknown_fields() {
    #[derive(Debug, Deserialize)]
    struct Loose {}
    let form = Form::parse(b"A=1").unwrap();
    assert_eq!(
        from_form::<Loose>(&form, Protocol::Ec2).unwrap_err(),
        WireError::Unknown("A".into())
    );
}

fn encode(request: &Request) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    out.append_pair("Name", &request.name);
    if let Some(count) = request.count {
        out.append_pair("Count", &count.to_string());
    }
    if let Some(flag) = request.flag {
        out.append_pair("Flag", &flag.to_string());
    }
    for (i, id) in request.ids.iter().enumerate() {
        out.append_pair(&format!("InstanceId.{}", i + 1), id);
    }
    for (i, filter) in request.filters.iter().enumerate() {
        out.append_pair(&format!("Filter.{}.Name", i + 1), &filter.name);
        for (j, value) in filter.values.iter().enumerate() {
            out.append_pair(&format!("Filter.{}.Value.{}", i + 1, j + 1), value);
        }
    }
    if let Some(port) = request.nested.as_ref().and_then(|n| n.port) {
        out.append_pair("Nested.Port", &port.to_string());
    }
    out.finish()
}

prop_compose! {
    fn request()(
        name in any::<String>(),
        count in any::<Option<i32>>(),
        flag in any::<Option<bool>>(),
        ids in proptest::collection::vec(any::<String>(), 0..15),
        filters in proptest::collection::vec(
            (any::<String>(), proptest::collection::vec(any::<String>(), 0..4)), 0..4),
        port in any::<Option<u16>>(),
    ) -> Request {
        let filters = filters.into_iter().map(|(name, values)| Filter { name, values }).collect();
        Request { name, count, flag, ids, filters, nested: port.map(|p| Nested { port: Some(p) }) }
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_read_back(request in request()) {
        prop_assert_eq!(read(&encode(&request)).unwrap(), request);
    }
}
