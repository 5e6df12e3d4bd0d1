//! `docs/result.schema.json`, for programs in other languages: it is what the types say, and what results are.

use std::{env, fs, path::PathBuf};

use boon::{Compiler, SchemaIndex, Schemas};
use milena_loadtest::result::{Kind, ReasonCode, ResultFile};
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::sample;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("loadtest/ is in the root")
        .join("docs/result.schema.json")
}

/// The schema of the types, with their comments.
fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator.into_root_schema_for::<ResultFile>().to_value();
    schema["title"] = json!("A result of milena-loadtest");
    schema["description"] = json!(
        "What one measurement leaves behind. Times are whole nanoseconds where a name ends in _ns; a rate is per second; a \
         share is from 0 to 1. What could not be measured is null. Pass over fields that you do not know, and refuse a \
         schema above the one that you know: within one schema fields are only added."
    );
    without_links(&mut schema);
    schema
}

/// Links of Rust's documentation lead nowhere here.
fn without_links(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`").replace('\n', " ");
            }
            fields.values_mut().for_each(without_links);
        }
        Value::Array(values) => values.iter_mut().for_each(without_links),
        _ => {}
    }
}

/// A result, and what is wrong with it.
struct Checker {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Checker {
    fn new(schema: Value) -> Self {
        const ADDRESS: &str = "urn:milena:result";
        let mut schemas = Schemas::new();
        let mut compiler = Compiler::new();
        compiler.add_resource(ADDRESS, schema).unwrap();
        let index = compiler.compile(ADDRESS, &mut schemas).unwrap_or_else(|error| panic!("{error:#}"));
        Self { schemas, index }
    }

    fn complaint(&self, result: &Value) -> Option<String> {
        self.schemas.validate(result, self.index).err().map(|error| format!("{error:#}"))
    }
}

/// The committed schema, in which a field that is not there is forbidden.
fn strict(mut schema: Value) -> Value {
    fn forbid(value: &mut Value) {
        if let Value::Object(fields) = value {
            if fields.contains_key("properties") {
                fields.insert("additionalProperties".to_owned(), json!(false));
            }
            fields.values_mut().for_each(forbid);
        }
    }
    forbid(&mut schema);
    schema
}

fn committed() -> Value {
    let text = fs::read_to_string(path()).unwrap_or_else(|error| panic!("{}: {error}", path().display()));
    serde_json::from_str(&text).unwrap()
}

/// Every kind of result.
fn results() -> Vec<Value> {
    let mut files =
        vec![sample::run(), sample::invalid(), sample::scarce(), sample::verified(), sample::sweep(), sample::search()];
    files.push(sample::ab());
    files.iter().map(|file| serde_json::to_value(file).unwrap()).collect()
}

#[test]
fn the_committed_schema_is_that_of_the_types() {
    let fresh = schema();
    if env::var_os("MILENA_REGENERATE").is_some() {
        fs::create_dir_all(path().parent().expect("a folder")).unwrap();
        fs::write(path(), serde_json::to_string_pretty(&fresh).unwrap() + "\n").unwrap();
    }
    // As values: in which order fields are written depends on features of other packages' serde_json.
    assert!(
        committed() == fresh,
        "docs/result.schema.json is not what loadtest/src/result.rs says; \
         MILENA_REGENERATE=1 cargo test -p milena-loadtest --test report schema"
    );
}

#[test]
fn every_result_is_what_the_schema_says_and_has_no_field_beyond_it() {
    let checker = Checker::new(strict(committed()));
    for result in results() {
        assert_eq!(checker.complaint(&result), None, "{}", result["kind"]);
    }
}

#[test]
fn names_of_kinds_and_reasons_are_in_the_schema_as_they_are_written() {
    let checker = Checker::new(committed());
    let mut result = serde_json::to_value(sample::invalid()).unwrap();
    for kind in [Kind::Run, Kind::Replay, Kind::Verify, Kind::Sweep, Kind::Search, Kind::Ab] {
        result["kind"] = json!(kind);
        assert_eq!(checker.complaint(&result), None);
    }
    for code in [ReasonCode::SendLag, ReasonCode::AchievedRate, ReasonCode::ClientBusy, ReasonCode::Steal] {
        result["runs"][0]["validity"]["reasons"][0]["code"] = json!(code);
        assert_eq!(checker.complaint(&result), None);
    }
}

#[test]
fn what_is_no_result_is_noticed() {
    let checker = Checker::new(committed());
    let spoilt = |pointer: &str, value: Value| {
        let mut result = serde_json::to_value(sample::run()).unwrap();
        *result.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        checker.complaint(&result).unwrap_or_default()
    };
    assert!(spoilt("/kind", json!("walk")).contains("/kind"));
    assert!(spoilt("/runs/0/counts/requests", json!(-1)).contains("/runs/0/counts/requests"));
    assert!(spoilt("/runs/0/latency/0/response/percentiles/0/value_ns", json!("1ms")).contains("value_ns"));
    assert!(!spoilt("/runs/0/noise", json!({})).is_empty(), "fields that are always there");

    let mut newer = serde_json::to_value(sample::run()).unwrap();
    newer["runs"][0]["from_a_later_version"] = json!(1);
    assert_eq!(checker.complaint(&newer), None, "readers pass over what they do not know");
    assert!(Checker::new(strict(committed())).complaint(&newer).is_some(), "and the test above does not");
}
