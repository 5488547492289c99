//! Components of a few lines of WAT: attacks at instantiation, in `about`, and through imports.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use swift_plugin::{Kind, PluginHost};

use super::{contains, host_with, tight};

/// A dataset plugin that answers `about` properly and traps in everything else. `items` go into the core module as they are.
pub(crate) fn component(items: &str) -> Vec<u8> {
    component_of(items, "(func (export \"swift:plugin/about@0.1.0#get\") (result i32) i32.const 64)", "dataset")
}

fn component_of(items: &str, get: &str, kind: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    for (path, text) in [
        ("tensor.wit", include_str!("../../../../wit/tensor-0.1.0/tensor.wit")),
        ("plugin.wit", include_str!("../../../../wit/plugin-0.1.0/plugin.wit")),
    ] {
        resolve.push_str(path, text).unwrap();
    }
    let world = "package t:t; world w { export swift:plugin/about@0.1.0; export swift:plugin/dataset@0.1.0; }";
    let package = resolve.push_str("t.wit", world).unwrap();
    let world = resolve.select_world(&[package], Some("w")).unwrap();
    let kind_len = kind.len();
    // The record that `get` returns: name, version, license and a list of one item, each a pointer and a length.
    let text = format!(
        r#"(module
            (memory (export "memory") 1)
            (data (i32.const 0) "small0.1{kind}")
            (data (i32.const 64) "\00\00\00\00\05\00\00\00\05\00\00\00\03\00\00\00\00\00\00\00\00\00\00\00\80\00\00\00\01\00\00\00")
            (data (i32.const 128) "\08\00\00\00\{kind_len:02x}\00\00\00\00\00\00\00\05\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
            {get}
            (func (export "swift:plugin/dataset@0.1.0#list-shards") (param i32 i32) (result i32) unreachable)
            (func (export "swift:plugin/dataset@0.1.0#map-rows") (param i32 i32 i32 i32) (result i32) i32.const 65532)
            (func (export "swift:plugin/dataset@0.1.0#generate") (param i32 i32 i32 i32 i64 i32) (result i32) i32.const -1)
            {items})"#
    );
    let mut module = wat::parse_str(text).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

fn refused(host: &PluginHost, bytes: &[u8]) -> String {
    host.load_bytes("small", bytes).expect_err("it must be refused").to_string()
}

/// The honest small plugin still loads.
pub(crate) fn alive(host: &PluginHost) {
    let plugin = host.load_bytes("small", &component("")).unwrap();
    assert_eq!((plugin.about().name.as_str(), plugin.kinds()), ("small", &[Kind::Dataset][..]));
}

#[test]
fn start_code_is_under_the_same_limits() {
    let host = host_with(tight());
    let spin = component("(func $f (loop (br 0))) (start $f)");
    contains(&refused(&host, &spin), &["plugin `small`, instantiate", "limit `epoch-ms` = 1000"]);
    let grow = component("(func $f (loop (drop (memory.grow (i32.const 100))) (br 0))) (start $f)");
    contains(&refused(&host, &grow), &["limit `memory` = 67108864", "grows to"]);
    let table =
        component("(table 1 funcref) (func $f (loop (drop (table.grow (ref.null func) (i32.const 9999))) (br 0))) (start $f)");
    contains(&refused(&host, &table), &["limit `table` = 200000"]);
    let trap = component("(func $f unreachable) (start $f)");
    contains(&refused(&host, &trap), &["instantiate", "panicked"]);
    let deep = component("(func $f (call $f)) (start $f)");
    contains(&refused(&host, &deep), &["limit `stack`", "nest too deep"]);
    let huge = component("(memory $big 60000)");
    contains(&refused(&host, &huge), &["limit `memory`"]);
    alive(&host);
}

#[test]
fn answers_that_point_outside_memory_are_refused() {
    let host = host_with(tight());
    let at =
        |get: &str| component_of("", &format!("(func (export \"swift:plugin/about@0.1.0#get\") (result i32) {get})"), "dataset");
    contains(&refused(&host, &at("i32.const -4")), &["about.get"]);
    contains(&refused(&host, &at("i32.const 65532")), &["about.get"]);
    contains(&refused(&host, &at("unreachable")), &["about.get", "panicked"]);
    contains(&refused(&host, &at("i32.const 1")), &["about.get"]);
    let dataset = host.load_bytes("small", &component("")).unwrap();
    let mut guest = dataset.dataset().unwrap();
    contains(&guest.map_rows("", &["{}".into()]).unwrap_err().to_string(), &["plugin `small`, dataset.map-rows"]);
    // After a trap the instance is not entered again; a new one is.
    contains(&guest.map_rows("", &[]).unwrap_err().to_string(), &["broke down earlier"]);
    contains(&dataset.dataset().unwrap().shards("").unwrap_err().to_string(), &["dataset.list-shards", "panicked"]);
    contains(&dataset.dataset().unwrap().generate("", "train", 0, 1).unwrap_err().to_string(), &["dataset.generate"]);
    alive(&host);
}

#[test]
fn about_must_agree_with_the_exports() {
    let host = host_with(tight());
    let get = "(func (export \"swift:plugin/about@0.1.0#get\") (result i32) i32.const 64)";
    contains(&refused(&host, &component_of("", get, "teacher")), &["unknown kind `teacher`"]);
    contains(&refused(&host, &component_of("", get, "loss")), &["is a loss, but the component exports no `loss`"]);
    alive(&host);
}

#[test]
fn only_known_imports_are_given() {
    let host = host_with(tight());
    let import =
        |name: &str| wat::parse_str(format!("(component (import \"{name}\" (instance (export \"f\" (func)))))")).unwrap();
    contains(&refused(&host, &import("wasi:filesystem/types@0.2.3")), &["imports `wasi:filesystem/types@0.2.3`", "no WASI"]);
    contains(&refused(&host, &import("wasi:sockets/tcp@0.2.0")), &["wasi:sockets", "no files, network, clock"]);
    contains(&refused(&host, &import("evil:host/exec@1.0.0")), &["imports `evil:host/exec@1.0.0`", "no such interface"]);
    contains(&refused(&host, &import("swift:plugin/exec@0.1.0")), &["no such interface"]);
    contains(&refused(&host, &import("swift:plugin/env@0.2.0")), &["version 0.1 of `swift:plugin/env`"]);
    contains(&refused(&host, &import("swift:tensor/graph@0.1.0")), &["only plugins that trace graphs"]);
    let function = wat::parse_str("(component (import \"run\" (func)))").unwrap();
    contains(&refused(&host, &function), &["imports `run`", "no such interface"]);
    // A name that is allowed, with a content that is not.
    let mut honest = component("");
    let wrong = wat::parse_str("(component (import \"swift:plugin/env@0.1.0\" (instance (export \"exec\" (func)))))").unwrap();
    contains(&refused(&host, &wrong), &["does not export `swift:plugin/about@0.1.0`"]);
    assert!(host.load_bytes("small", &honest).is_ok());
    honest.truncate(honest.len() - 1);
    refused(&host, &honest);
    alive(&host);
}

#[test]
fn manifests_narrow_and_bind() {
    let host = host_with(tight());
    let manifest = |extra: &str| {
        format!(
            "[plugin]\nid = \"org.example.small\"\nversion = \"0.1.0\"\napi = \"swift:plugin@0.1\"\nprovides = [\"dataset:small\"]\n{extra}"
        )
    };
    let with = |text: &str| {
        let mut bytes = component("");
        swift_plugin::component::embed("small", &mut bytes, text).map(|()| bytes)
    };
    let plugin = host.load_bytes("small", &with(&manifest("[limits]\nmemory = \"1MiB\"\nnodes = 999999999")).unwrap()).unwrap();
    assert_eq!((plugin.limits().memory, plugin.limits().nodes), (1 << 20, tight().nodes));
    assert!(!plugin.grants().materialize_logits);
    let unknown = with(&manifest("[limits]\ngold = 1")).unwrap();
    contains(&refused(&host, &unknown), &["there is no limit `gold`"]);
    let lying = with(&manifest("").replace("dataset:small", "loss:small")).unwrap();
    contains(&refused(&host, &lying), &["exports no `loss`"]);
    contains(&with(&manifest("").replace("plugin@0.1", "plugin@7.0")).unwrap_err().to_string(), &["this host runs"]);
    let mut twice = with(&manifest("")).unwrap();
    swift_plugin::component::embed("small", &mut twice, &manifest("")).unwrap();
    contains(&refused(&host, &twice), &["two embedded manifests"]);
    alive(&host);
}
