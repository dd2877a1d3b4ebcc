//! `proto/` states interfaces that others own. Here our text is compiled and compared with theirs: every service,
//! method, message, field, enum, value and option, with names, numbers and types.
//!
//! Theirs comes from the Go modules that the rig builds Kubernetes from. It wants Go and the module cache or a proxy.

#![expect(clippy::disallowed_methods, reason = "Go knows where its modules are")]

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use prost_reflect::Cardinality;
use prost_reflect::DescriptorPool;
use prost_reflect::DynamicMessage;
use prost_reflect::EnumDescriptor;
use prost_reflect::FieldDescriptor;
use prost_reflect::FileDescriptor;
use prost_reflect::Kind;
use prost_reflect::MessageDescriptor;
use prost_reflect::ServiceDescriptor;

#[test]
fn the_csi_is_stated_as_it_is_specified() {
    let theirs = module("github.com/container-storage-interface/spec").join("csi.proto");
    compare("csi.proto", &theirs, Scope::WithFileOptions);
}

#[test]
fn the_registration_is_stated_as_the_kubelet_has_it() {
    let theirs = module("k8s.io/kubelet").join("pkg/apis/pluginregistration/v1/api.proto");
    // The file's options there are about Go code.
    compare("pluginregistration.proto", &theirs, Scope::WithoutFileOptions);
}

#[test]
fn a_statement_that_differs_is_caught() {
    let theirs = lines(&compile(&ours("csi.proto")), Scope::WithFileOptions);
    let text = fs::read_to_string(ours("csi.proto")).expect("our own file");
    for (from, to) in [
        ("map<string, string> secrets = 5 [(csi_secret) = true];", "map<string, string> secrets = 5;"),
        ("SINGLE_NODE_WRITER = 1;", "SINGLE_NODE_WRITTEN = 1;"),
        ("int64 limit_bytes = 2;", "int64 limit_bytes = 3;"),
        ("bool readonly = 6;", "string readonly = 6;"),
        ("reserved 11;", "reserved 21;"),
        ("returns (stream GetMetadataDeltaResponse)", "returns (GetMetadataDeltaResponse)"),
    ] {
        assert!(text.contains(from), "{from}");
        let directory = tempfile::tempdir().expect("a directory");
        let changed = directory.path().join("csi.proto");
        fs::write(&changed, text.replacen(from, to, 1)).expect("written");
        assert_ne!(lines(&compile(&changed), Scope::WithFileOptions), theirs, "{to}");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    WithFileOptions,
    WithoutFileOptions,
}

fn ours(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto").join(name)
}

/// Where Go has put the sources of `module`, in the version that the rig uses.
fn module(module: &str) -> PathBuf {
    let rig = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/rig/go/k8s");
    let go = |arguments: &[&str]| {
        let output = Command::new("go").args(arguments).current_dir(&rig).output().expect("Go is installed");
        assert!(output.status.success(), "go {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("a path in UTF-8").trim().to_owned()
    };
    let directory = go(&["list", "-m", "-f", "{{.Dir}}", module]);
    if !directory.is_empty() {
        return directory.into();
    }
    // Known but not downloaded yet.
    go(&["mod", "download", module]);
    go(&["list", "-m", "-f", "{{.Dir}}", module]).into()
}

fn compile(path: &Path) -> FileDescriptor {
    let directory = path.parent().expect("a file is in a directory");
    let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
    let mut compiler = protox::Compiler::new([directory]).expect("the directory is readable");
    compiler.include_imports(true).open_file(name).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
    let pool: DescriptorPool = compiler.descriptor_pool();
    pool.get_file_by_name(name).expect("it was compiled")
}

fn compare(name: &str, theirs: &Path, scope: Scope) {
    let our_lines = lines(&compile(&ours(name)), scope);
    let their_lines = lines(&compile(theirs), scope);
    assert!(their_lines.len() > 8, "{} states nothing", theirs.display());
    let missing = their_lines.iter().filter(|line| !our_lines.contains(line)).map(|line| format!("- {line}"));
    let extra = our_lines.iter().filter(|line| !their_lines.contains(line)).map(|line| format!("+ {line}"));
    let difference: Vec<String> = missing.chain(extra).collect();
    assert!(difference.is_empty(), "{name} differs:\n{}", difference.join("\n"));
    assert_eq!(our_lines.len(), their_lines.len(), "{name} states something twice");
}

/// Everything that a file states, one sorted line for each thing.
fn lines(file: &FileDescriptor, scope: Scope) -> Vec<String> {
    let mut lines = vec![format!("package {}", file.package_name())];
    if scope == Scope::WithFileOptions {
        lines.push(format!("file {}", options(&file.options())));
    }
    for extension in file.extensions() {
        let of = extension.containing_message();
        lines.push(format!(
            "extend {} {} = {} {:?}",
            of.full_name(),
            extension.name(),
            extension.number(),
            extension.kind()
        ));
    }
    file.services().for_each(|service| state_service(&service, &mut lines));
    file.messages().for_each(|message| state_message(&message, &mut lines));
    file.enums().for_each(|kind| state_enum(&kind, &mut lines));
    lines.sort();
    lines
}

fn state_service(service: &ServiceDescriptor, lines: &mut Vec<String>) {
    lines.push(format!("service {} {}", service.full_name(), options(&service.options())));
    for method in service.methods() {
        lines.push(format!(
            "rpc {} ({} stream {}) returns ({} stream {}) {}",
            method.full_name(),
            method.input().full_name(),
            method.is_client_streaming(),
            method.output().full_name(),
            method.is_server_streaming(),
            options(&method.options()),
        ));
    }
}

fn state_message(message: &MessageDescriptor, lines: &mut Vec<String>) {
    let reserved: Vec<_> = message.reserved_ranges().collect();
    lines.push(format!("message {} reserved {reserved:?} {}", message.full_name(), options(&message.options())));
    message.fields().for_each(|field| lines.push(stated_field(&field)));
    message.child_messages().for_each(|child| state_message(&child, lines));
    message.child_enums().for_each(|child| state_enum(&child, lines));
}

fn stated_field(field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(kind) => kind.full_name().to_owned(),
        kind => format!("{kind:?}"),
    };
    let one_of = field.containing_oneof().map(|one_of| one_of.name().to_owned()).unwrap_or_default();
    let repeated = if field.cardinality() == Cardinality::Repeated { "repeated " } else { "" };
    format!(
        "field {} = {} {repeated}{kind} oneof {one_of:?} {}",
        field.full_name(),
        field.number(),
        options(&field.options())
    )
}

fn state_enum(kind: &EnumDescriptor, lines: &mut Vec<String>) {
    let reserved: Vec<_> = kind.reserved_ranges().collect();
    lines.push(format!("enum {} reserved {reserved:?} {}", kind.full_name(), options(&kind.options())));
    for value in kind.values() {
        lines.push(format!("value {} = {} {}", value.full_name(), value.number(), options(&value.options())));
    }
}

/// The options that are set, extensions included.
fn options(options: &DynamicMessage) -> String {
    let own = options.fields().map(|(field, value)| format!("{}={value}", field.name()));
    let extensions = options.extensions().map(|(extension, value)| format!("({})={value}", extension.name()));
    let mut set: Vec<String> = own.chain(extensions).collect();
    set.sort();
    set.join(" ")
}
