//! The house rules that a machine can check: who may import whom, and how files look.
//!
//! Each rule is a function from text to complaints, so that every one is also shown something bad and must notice it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

/// Shown to whoever adds an arrow. The same picture is in ARCHITECTURE.md.
const PICTURE: &str = "
   core ─────▶ storage ─────▶ net ─────▶ proto      A ─▶ B: A may import B and what B points to
                  ▲            ▲ ▲
   router ────────┴────────────┘ │                  never: core and router (they meet on the wire only),
   loadtest ─────────────────────┘                         anything to the left
                                                    benches ─▶ any; whole-cluster tests live in loadtest/tests
";

/// The seven folders, each with what it may import. The packages are `milena-` and the folder's name.
const ARROWS: [(&str, &[&str]); 7] = [
    ("proto", &[]),
    ("net", &["proto"]),
    ("storage", &["net", "proto"]),
    ("core", &["storage", "net", "proto"]),
    ("router", &["storage", "net", "proto"]),
    ("loadtest", &["net", "proto"]),
    ("benches", &["proto", "net", "storage", "core", "router", "loadtest"]),
];

/// What these two need for a test is nobody else's business: they are at the end of every arrow.
const FREE_IN_TESTS: [&str; 2] = ["loadtest", "benches"];

/// The router keeps no values, so these parts of `storage` are not for it.
const NOT_FOR_THE_ROUTER: [&str; 2] = ["memory", "log"];

/// Drawers that one never wants to open; such a thing is usually a method of a type that exists.
const DRAWERS: [&str; 8] = ["utils", "util", "common", "helpers", "helper", "types", "manager", "handler"];

/// Folders that hold no text of ours.
const NOT_OURS: [&str; 3] = ["target", "milena-data", "__pycache__"];

/// What begins with a dot belongs to git, editors and test runners, but for these.
const OURS_THOUGH_HIDDEN: [&str; 3] = [".ci", ".gitignore", ".dockerignore"];

/// Endings of files that people read; others are not looked into.
const TEXT: [&str; 10] = ["rs", "toml", "md", "py", "proto", "sh", "yml", "yaml", "txt", ""];

// ---- The rules.

/// Every dependency of `folder`'s manifest that the picture does not allow.
fn arrows_not_drawn(folder: &str, manifest: &Table) -> Vec<String> {
    let allowed = ARROWS.iter().find(|(name, _)| *name == folder).map_or(&[][..], |(_, allowed)| allowed);
    dependencies(manifest)
        .into_iter()
        .filter(|(section, _)| !(section == "dev-dependencies" && FREE_IN_TESTS.contains(&folder)))
        .filter_map(|(section, package)| {
            let target = package.strip_prefix("milena-")?;
            // A package's tests may turn on features of the package itself.
            let is_own_test = target == folder && section == "dev-dependencies";
            let drawn = allowed.contains(&target) || is_own_test;
            (!drawn).then(|| format!("{folder} ─▶ {target} in [{section}] is not in the picture:\n{PICTURE}"))
        })
        .collect()
}

/// Every dependency that does not come from the root manifest, where its reason would stand.
fn dependencies_without_a_reason(folder: &str, manifest: &Table) -> Vec<String> {
    let sections = sections(manifest);
    let entries =
        sections.iter().flat_map(|(section, table)| table.iter().map(move |(name, value)| (section, name, value)));
    entries
        .filter(|(_, _, value)| value.get("workspace").and_then(Value::as_bool) != Some(true))
        .map(|(section, name, _)| {
            format!(
                "{folder}/Cargo.toml: {name} in [{section}] should be `workspace = true`, with its reason in the root"
            )
        })
        .collect()
}

/// Every line of the root's `[workspace.dependencies]` and `[patch]` that does not say why it is there.
fn lines_without_a_reason(root_manifest: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut section = "";
    let mut line_before = "";
    for line in root_manifest.lines() {
        let is_entry = !line.trim().is_empty() && !line.starts_with(['#', '[']);
        if line.starts_with('[') {
            section = line.trim();
        }
        let is_ours = line.starts_with("milena-");
        let explained = match section {
            "[workspace.dependencies]" => is_ours || line.contains(" # "),
            _ => true,
        };
        if is_entry && !explained {
            complaints.push(format!("Cargo.toml: `{line}` lacks `# why it is here`"));
        }
        if line.starts_with("[patch") && !line_before.starts_with('#') {
            complaints.push(format!("Cargo.toml: `{line}` lacks a comment above it that says why"));
        }
        line_before = line;
    }
    complaints
}

/// Every use of a part of `storage` that the router has no business with.
fn storage_beyond_the_object_store(path: &str, source: &str) -> Vec<String> {
    let uses = source.split("milena_storage::").skip(1);
    uses.filter_map(|rest| {
        let used = rest.split([';', '(', ')', '<', '>', '=']).next().unwrap_or_default();
        let mut words = used.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let word = words.find(|word| NOT_FOR_THE_ROUTER.contains(word))?;
        Some(format!("{path}: the router uses storage's object store alone, and here is `{word}`"))
    })
    .collect()
}

/// Every lock in the source of a server, tests apart: cores talk through mailboxes.
fn locks(path: &Path, source: &str) -> Vec<String> {
    const SERVERS: [&str; 4] = ["net/src", "storage/src", "core/src", "router/src"];
    if !SERVERS.iter().any(|folder| path.starts_with(folder)) {
        return Vec::new();
    }
    let served = source.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = served.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let locked = lines.filter(|(_, line)| ["Mutex", "RwLock", "Condvar"].iter().any(|lock| line.contains(lock)));
    locked.map(|(index, _)| format!("{}:{}: a lock; cores talk through mailboxes", path.display(), index + 1)).collect()
}

/// A file or folder with a name that says nothing.
fn drawer(path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_str()?;
    DRAWERS.contains(&stem).then(|| format!("{}: what is in it? A name of its own, please", path.display()))
}

/// What is wrong with the text of one file.
fn complaints_about_text(path: &Path, text: &str) -> Vec<String> {
    let shown = path.display();
    let mut complaints = Vec::new();
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    let is_generated = path.components().any(|part| part.as_os_str() == "generated");
    if is_rust && !is_generated && !text.starts_with("//!") {
        complaints.push(format!("{shown}: begin with `//!` and what the file is for"));
    }
    // In pieces, so that this file is not its own first finding.
    let todo = ["todo", "!"].concat();
    let homes = [["/ro", "ot/"].concat(), ["/ho", "me/"].concat(), ["/wo", "rk/"].concat()];
    let hosts =
        [["static.crates", ".io"].concat(), ["files.python", "hosted"].concat(), ["registry.npm", "js"].concat()];
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if is_rust && line.contains(&todo) {
            complaints.push(format!("{shown}:{number}: do it, or say in an issue what is left"));
        }
        if homes.iter().any(|home| line.contains(home)) {
            complaints.push(format!("{shown}:{number}: a path that exists on one machine only"));
        }
        if hosts.iter().any(|host| line.contains(host)) {
            complaints
                .push(format!("{shown}:{number}: a registry's host; packages are named, their registry is a setting"));
        }
    }
    complaints
}

// ---- Reading.

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("loadtest/ is in the root").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest(text: &str) -> Table {
    text.parse().unwrap_or_else(|error| panic!("not a manifest: {error}\n{text}"))
}

/// The dependency tables of a manifest with their names, those under `[target.…]` included.
fn sections(manifest: &Table) -> Vec<(String, &Table)> {
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut tables: Vec<&Table> = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let named =
        tables.into_iter().flat_map(|table| kinds.map(|kind| (kind, table.get(kind).and_then(Value::as_table))));
    named.filter_map(|(kind, table)| Some((kind.to_owned(), table?))).collect()
}

/// Section and package of every dependency; a renamed one by its real name.
fn dependencies(manifest: &Table) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (section, table) in sections(manifest) {
        for (name, value) in table {
            let package = value.get("package").and_then(Value::as_str).unwrap_or(name);
            found.insert((section.clone(), package.to_owned()));
        }
    }
    found
}

/// Every file of ours below `folder`, and the folders on the way, relative to the root.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let is_hidden = name.starts_with('.') && !OURS_THOUGH_HIDDEN.contains(&&*name);
        if is_hidden || NOT_OURS.contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            walk(&path, found);
        }
        found.push(path.strip_prefix(root()).expect("below the root").to_owned());
    }
}

fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&root(), &mut found);
    assert!(found.len() > 50, "only {} files: this is not the repository", found.len());
    found
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

// ---- The house as it stands.

#[test]
fn nobody_imports_against_the_arrows() {
    let complaints: Vec<String> = ARROWS
        .iter()
        .flat_map(|(folder, _)| arrows_not_drawn(folder, &manifest(&read(&root().join(folder).join("Cargo.toml")))))
        .collect();
    assert_none(&complaints);
}

#[test]
fn the_workspace_is_the_seven_folders() {
    let root_manifest = manifest(&read(&root().join("Cargo.toml")));
    let members = root_manifest["workspace"]["members"].as_array().expect("a list of folders");
    let members: BTreeSet<&str> = members.iter().filter_map(Value::as_str).collect();
    assert_eq!(members, ARROWS.iter().map(|(folder, _)| *folder).collect());
    for folder in members {
        let package = manifest(&read(&root().join(folder).join("Cargo.toml")));
        assert_eq!(package["package"]["name"].as_str(), Some(&*format!("milena-{folder}")));
        assert_eq!(package["lints"]["workspace"].as_bool(), Some(true), "{folder} has lints of its own");
    }
}

#[test]
fn every_dependency_has_its_reason_in_the_root_manifest() {
    let mut complaints = lines_without_a_reason(&read(&root().join("Cargo.toml")));
    for (folder, _) in ARROWS {
        let package = manifest(&read(&root().join(folder).join("Cargo.toml")));
        complaints.extend(dependencies_without_a_reason(folder, &package));
    }
    assert_none(&complaints);
}

#[test]
fn the_router_uses_the_object_store_alone() {
    let sources = files().into_iter().filter(|path| path.starts_with("router/src") && root().join(path).is_file());
    let complaints: Vec<String> = sources
        .flat_map(|path| storage_beyond_the_object_store(&path.display().to_string(), &read(&root().join(&path))))
        .collect();
    assert_none(&complaints);
}

#[test]
fn every_file_has_a_name_that_says_something_and_a_head_that_says_what_for() {
    let mut complaints = Vec::new();
    for path in files() {
        complaints.extend(drawer(&path));
        let extension = path.extension().map_or("", |extension| extension.to_str().unwrap_or("?"));
        let full = root().join(&path);
        if full.is_file() && TEXT.contains(&extension) {
            let text = read(&full);
            complaints.extend(complaints_about_text(&path, &text));
            complaints.extend(locks(&path, &text));
        }
    }
    assert_none(&complaints);
}

// ---- Every rule notices what it is for.

#[test]
fn an_arrow_to_the_left_is_noticed_with_the_picture() {
    let bad = manifest("[dependencies]\nmilena-proto.workspace = true\nmilena-core.workspace = true\n");
    for folder in ["proto", "net", "storage", "router", "loadtest"] {
        let complaints = arrows_not_drawn(folder, &bad);
        let found = complaints.iter().find(|text| text.contains(&format!("{folder} ─▶ core")));
        assert!(found.is_some_and(|text| text.contains(PICTURE)), "{folder}: {complaints:?}");
    }
    assert_eq!(arrows_not_drawn("benches", &bad), [""; 0]);
}

#[test]
fn an_arrow_is_noticed_however_it_is_written() {
    let spellings = [
        "[dependencies.milena-router]\nworkspace = true",
        "[dependencies]\nr = { package = \"milena-router\", path = \"../router\" }",
        "[target.'cfg(unix)'.dependencies]\nmilena-router.workspace = true",
        "[build-dependencies]\nmilena-router.workspace = true",
        "[dev-dependencies]\nmilena-router.workspace = true",
    ];
    for text in spellings {
        assert_eq!(arrows_not_drawn("core", &manifest(text)).len(), 1, "{text}");
    }
    assert_eq!(arrows_not_drawn("loadtest", &manifest(spellings[4])), [""; 0], "tests of whole clusters may use any");
}

#[test]
fn a_dependency_without_a_reason_is_noticed() {
    let root = "[workspace.dependencies]\nmilena-net = { path = \"net\" }\ngood = \"1\" # why\nbad = \"1\"\n\n[profile.dev]\nx = 1\n";
    assert_eq!(lines_without_a_reason(root), ["Cargo.toml: `bad = \"1\"` lacks `# why it is here`"]);
    assert_eq!(lines_without_a_reason("[patch.x]\na = 1\n").len(), 1);
    assert_eq!(lines_without_a_reason("# why\n[patch.x]\na = 1\n").len(), 0);

    let package = manifest(
        "[dependencies]\nbytes.workspace = true\nsneaky = \"1\"\n[dev-dependencies]\nworse = { git = \"x\" }\n",
    );
    assert_eq!(dependencies_without_a_reason("net", &package).len(), 2);
}

#[test]
fn a_router_that_keeps_values_is_noticed() {
    for bad in ["use milena_storage::memory::Memory;", "use milena_storage::{\n    object,\n    log::Log,\n};"] {
        assert_eq!(storage_beyond_the_object_store("x.rs", bad).len(), 1, "{bad}");
    }
    let good = "use milena_storage::{Error, object::Store};\nfn memory(store: &dyn milena_storage::object::Store) {}\n";
    assert_eq!(storage_beyond_the_object_store("x.rs", good), [""; 0]);
}

#[test]
fn a_drawer_a_bare_head_unfinished_work_and_machine_paths_are_noticed() {
    assert!(drawer(Path::new("net/src/utils.rs")).is_some());
    assert!(drawer(Path::new("core/src/helpers")).is_some());
    assert!(drawer(Path::new("net/src/mesh.rs")).is_none());

    let count = |path: &str, text: &str| complaints_about_text(Path::new(path), text).len();
    assert_eq!(count("a.rs", "//! For this.\nfn f() {}\n"), 0);
    assert_eq!(count("a.rs", "fn f() {}\n"), 1);
    assert_eq!(count("generated/a.rs", "fn f() {}\n"), 0);
    assert_eq!(count("a.rs", &["//! For this.\nfn f() { todo", "!() }\n"].concat()), 1);
    assert_eq!(count("a.md", &["see /ho", "me/somebody/notes"].concat()), 1);
    assert_eq!(count("a.toml", &["x = \"https://static.crates", ".io\""].concat()), 1);
}

#[test]
fn a_lock_in_a_server_is_noticed_and_one_in_its_tests_is_not() {
    let count = |path: &str, text: &str| locks(Path::new(path), text).len();
    assert_eq!(count("net/src/a.rs", "use std::sync::{Arc, Mutex};\n"), 1);
    assert_eq!(count("core/src/shard/a.rs", "x: RwLock<u8>,\n// no Mutex here\n"), 1);
    assert_eq!(count("net/src/a.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use std::sync::Mutex; }\n"), 0);
    assert_eq!(count("benches/src/a.rs", "use std::sync::Mutex;\n"), 0);
}
