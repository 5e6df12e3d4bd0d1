//! The committed messages are what the `.proto` files say.

use std::{fs, path::Path};

const FILES: [&str; 5] = [
    "milena/cache_server.proto",
    "milena/router_server.proto",
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
];

/// `v1alpha` is served with the messages of `v1`, so only its descriptor is kept.
const COMMITTED: [&str; 5] =
    ["cache_server.rs", "router_server.rs", "grpc.health.v1.rs", "grpc.reflection.v1.rs", "descriptors.bin"];

#[test]
fn committed_messages_are_those_of_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = tempfile::tempdir().unwrap();

    // The compiler's own encoding keeps comments; without them the descriptor is smaller and stable.
    let mut compiler = protox::Compiler::new([root]).unwrap();
    compiler.include_imports(true).open_files(FILES).unwrap();
    fs::write(made.path().join("descriptors.bin"), compiler.encode_file_descriptor_set()).unwrap();
    compiler.include_source_info(true);

    prost_build::Config::new().out_dir(made.path()).bytes(["."]).compile_fds(compiler.file_descriptor_set()).unwrap();

    let committed = root.join("src/generated");
    for name in COMMITTED {
        let fresh = fs::read(made.path().join(name)).unwrap();
        if std::env::var_os("MILENA_REGENERATE").is_some() {
            fs::write(committed.join(name), &fresh).unwrap();
        }
        assert!(
            fs::read(committed.join(name)).unwrap() == fresh,
            "{name} is not what the .proto files say; MILENA_REGENERATE=1 cargo test -p milena-proto --test generated"
        );
    }
}
