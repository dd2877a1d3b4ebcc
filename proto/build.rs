//! Generates the wire types of `proto/`, and for every request how it may be written to a log.
//!
//! Redaction is derived from the descriptor: a field with the option `csi_secret`, and a field that may carry tokens,
//! has no way into `Debug`. A message that gains such a field is covered by the next build.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use prost_reflect::{DescriptorPool, ExtensionDescriptor, FieldDescriptor, MessageDescriptor, MethodDescriptor};

/// May carry tokens of a service account or options that a cluster treats as sensitive, without the option.
const SENSITIVE: [&str; 3] = ["volume_context", "publish_context", "mount_flags"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(["csi.proto", "pluginregistration.proto"])?;
    let pool = compiler.descriptor_pool();
    let secret = pool.get_extension_by_name("csi.v1.csi_secret").ok_or("csi.proto defines csi_secret")?;

    let redacted: BTreeMap<String, MessageDescriptor> = pool
        .all_messages()
        .filter(|message| message.fields().any(|field| is_redacted(&field, &secret)))
        .map(|message| (message.full_name().to_owned(), message))
        .collect();
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .skip_debug(redacted.keys().map(|name| format!(".{name}")))
        .compile_fds(compiler.file_descriptor_set())?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("requests.rs"), requests(&pool, &redacted, &secret)?)?;
    Ok(())
}

fn is_redacted(field: &FieldDescriptor, secret: &ExtensionDescriptor) -> bool {
    field.options().get_extension(secret).as_bool() == Some(true) || SENSITIVE.contains(&field.name())
}

/// `Debug` without the redacted fields, and name and volume id of each call of the package `csi.v1`.
fn requests(
    pool: &DescriptorPool,
    redacted: &BTreeMap<String, MessageDescriptor>,
    secret: &ExtensionDescriptor,
) -> Result<String, std::fmt::Error> {
    let mut code = String::new();
    for message in redacted.values() {
        write!(
            code,
            "impl std::fmt::Debug for {0} {{ fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{ f.debug_struct({1:?})",
            rust_path(message),
            message.name()
        )?;
        for field in message.fields().filter(|field| !is_redacted(field, secret)) {
            write!(code, ".field({0:?}, &self.{0})", field.name())?;
        }
        writeln!(code, ".finish_non_exhaustive() }} }}")?;
    }
    for method in pool
        .services()
        .filter(|service| service.package_name() == "csi.v1")
        .flat_map(|s| s.methods().collect::<Vec<_>>())
    {
        writeln!(code, "{}", call(&method))?;
    }
    Ok(code)
}

fn call(method: &MethodDescriptor) -> String {
    let volume = if method.input().get_field_by_name("volume_id").is_some() { "&self.volume_id" } else { "\"\"" };
    format!(
        "impl Call for {} {{ const NAME: &'static str = {:?}; fn volume_id(&self) -> &str {{ {volume} }} }}",
        rust_path(&method.input()),
        method.name(),
    )
}

/// Where prost puts `message`: below the package, nested types in a module named after their parent.
fn rust_path(message: &MessageDescriptor) -> String {
    let mut path = format!("csi::{}", message.name());
    let mut inner = message.parent_message();
    while let Some(parent) = inner {
        let module = snake_case(parent.name());
        path = path.replacen("csi::", &format!("csi::{module}::"), 1);
        inner = parent.parent_message();
    }
    path
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}
