//! The evolution rules of `wit/README.md`: what has been released may be added to, never changed or removed.
//!
//! Both packages are rendered to one line per item, with every type spelled out, and compared with `wit/released.txt`. After adding
//! something: `UPDATE_EXPECT=1 cargo test -p swift-plugin --test wit_freeze`, which appends the new lines and still refuses all else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use wit_parser::{
    Function, FunctionKind, Handle, InterfaceId, Resolve, Type, TypeDefKind, TypeId, TypeOwner, WorldItem, WorldKey,
};

fn wit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit")
}

fn resolve(edit: impl Fn(&str) -> String) -> Vec<String> {
    let mut resolve = Resolve::default();
    for (folder, file) in [("tensor-0.1.0", "tensor.wit"), ("plugin-0.1.0", "plugin.wit")] {
        let path = wit().join(folder).join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        resolve.push_str(&path, &edit(&text)).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
    }
    lines(&resolve)
}

/// `swift:tensor/graph@0.1`: the patch number is what may grow.
fn interface_name(resolve: &Resolve, id: InterfaceId) -> String {
    let interface = &resolve.interfaces[id];
    let package = &resolve.packages[interface.package.expect("every interface is in a package")].name;
    let version = package.version.as_ref().expect("every package has a version");
    let name = interface.name.as_deref().expect("no inline interfaces");
    format!("{}:{}/{name}@{}.{}", package.namespace, package.name, version.major, version.minor)
}

fn lines(resolve: &Resolve) -> Vec<String> {
    let mut out = BTreeSet::new();
    for (id, interface) in resolve.interfaces.iter() {
        let home = interface_name(resolve, id);
        out.insert(format!("{home}: interface"));
        for (name, ty) in &interface.types {
            out.insert(format!("{home}: type {name} = {}", definition(resolve, *ty)));
        }
        for function in interface.functions.values() {
            out.insert(format!("{home}: {}", signature(resolve, function)));
        }
    }
    for (_, world) in resolve.worlds.iter() {
        let items = world.imports.iter().map(|i| ("import", i)).chain(world.exports.iter().map(|i| ("export", i)));
        for (direction, (key, item)) in items {
            let item = match (key, item) {
                (WorldKey::Interface(id), WorldItem::Interface { .. }) => interface_name(resolve, *id),
                (key, _) => panic!("worlds hold interfaces only, not {key:?}"),
            };
            out.insert(format!("world {}: {direction} {item}", world.name));
        }
    }
    out.into_iter().collect()
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    assert!(!matches!(
        function.kind,
        FunctionKind::AsyncFreestanding | FunctionKind::AsyncMethod(_) | FunctionKind::AsyncStatic(_)
    ));
    let params: Vec<String> = function.params.iter().map(|p| format!("{}: {}", p.name, ty(resolve, &p.ty))).collect();
    let result = function.result.as_ref().map_or("()".to_string(), |r| ty(resolve, r));
    format!("func {}({}) -> {result}", function.name, params.join(", "))
}

fn ty(resolve: &Resolve, t: &Type) -> String {
    match t {
        Type::Id(id) => reference(resolve, *id),
        primitive => format!("{primitive:?}").to_lowercase(),
    }
}

/// A type as it is mentioned: by its name where it has one.
fn reference(resolve: &Resolve, id: TypeId) -> String {
    let def = &resolve.types[id];
    match (&def.name, def.owner) {
        (Some(name), TypeOwner::Interface(owner)) => match &def.kind {
            // `use` makes an alias; the original is what counts.
            TypeDefKind::Type(Type::Id(original)) => reference(resolve, *original),
            _ => format!("{}.{name}", interface_name(resolve, owner)),
        },
        _ => definition(resolve, id),
    }
}

fn definition(resolve: &Resolve, id: TypeId) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match &resolve.types[id].kind {
        TypeDefKind::Record(r) => {
            format!("record {{ {} }}", list(r.fields.iter().map(|f| format!("{}: {}", f.name, ty(resolve, &f.ty))).collect()))
        }
        TypeDefKind::Enum(e) => format!("enum {{ {} }}", list(e.cases.iter().map(|c| c.name.clone()).collect())),
        TypeDefKind::Flags(f) => format!("flags {{ {} }}", list(f.flags.iter().map(|c| c.name.clone()).collect())),
        TypeDefKind::Variant(v) => {
            let case = |c: &wit_parser::Case| c.ty.as_ref().map_or(c.name.clone(), |t| format!("{}({})", c.name, ty(resolve, t)));
            format!("variant {{ {} }}", list(v.cases.iter().map(case).collect()))
        }
        TypeDefKind::Tuple(t) => format!("tuple<{}>", list(t.types.iter().map(|t| ty(resolve, t)).collect())),
        TypeDefKind::Option(t) => format!("option<{}>", ty(resolve, t)),
        TypeDefKind::List(t) => format!("list<{}>", ty(resolve, t)),
        TypeDefKind::Result(r) => {
            let side = |t: &Option<Type>| t.as_ref().map_or("_".to_string(), |t| ty(resolve, t));
            format!("result<{}, {}>", side(&r.ok), side(&r.err))
        }
        TypeDefKind::Handle(Handle::Own(id)) => reference(resolve, *id),
        TypeDefKind::Handle(Handle::Borrow(id)) => format!("borrow<{}>", reference(resolve, *id)),
        TypeDefKind::Resource => "resource".to_string(),
        TypeDefKind::Type(t) => ty(resolve, t),
        other => panic!("a kind of type that plugins do not use: {other:?}"),
    }
}

/// What of `released` is missing from `now`.
fn broken<'a>(released: &'a str, now: &[String]) -> Vec<&'a str> {
    released.lines().filter(|l| !l.is_empty() && !l.starts_with('#') && !now.iter().any(|n| n == l)).collect()
}

#[test]
fn the_released_surface_only_grows() {
    let path = wit().join("released.txt");
    let released = std::fs::read_to_string(&path).unwrap_or_default();
    let now = resolve(str::to_string);
    let broken = broken(&released, &now);
    assert!(broken.is_empty(), "released items changed or disappeared (wit/README.md, rule 2):\n  {}", broken.join("\n  "));
    let new: Vec<&String> = now.iter().filter(|n| !released.lines().any(|l| l == *n)).collect();
    if new.is_empty() {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_EXPECT").is_some(),
        "new items; if they are meant to be released, run with UPDATE_EXPECT=1:\n  {}",
        new.iter().map(|s| s.as_str()).collect::<Vec<_>>().join("\n  ")
    );
    let mut text = String::from(
        "# What has been released, one line per item. Lines are only ever added; host/plugin/tests/wit_freeze.rs does it.\n",
    );
    for line in now {
        text += &line;
        text.push('\n');
    }
    std::fs::write(path, text).unwrap();
}

#[test]
fn every_kind_of_change_is_noticed() {
    let released = resolve(str::to_string).join("\n");
    let changes = [
        ("an enum case", "boolean, %u8", "boolean, %u16, %u8"),
        ("a record field", "record attr { key: string,", "record attr { key: string, note: string,"),
        ("a parameter", "softmax: func(x: borrow<value>, axis: s32)", "softmax: func(x: borrow<value>, axis: s64)"),
        ("a result", "dup: func() -> value;", "dup: func() -> option<value>;"),
        ("a removed function", "stop-grad: func(x: borrow<value>) -> result<value, error>;", ""),
        ("a variant case", "variant dim { fixed(u64), sym(sym-dim) }", "variant dim { sym(sym-dim), fixed(u64) }"),
    ];
    for (what, from, to) in changes {
        let now = resolve(|text| text.replace(from, to));
        assert!(!broken(&released, &now).is_empty(), "{what}: not noticed");
    }
    let grown = resolve(|text| {
        text.replace("resource kv-cache;", "resource kv-cache; record later { a: u32 } later-on: func() -> later;")
    });
    assert!(broken(&released, &grown).is_empty(), "additions are allowed");
    assert_eq!(grown.len(), released.lines().count() + 2);
}
