//! A third party's way: a folder outside this repository, the SDK as the only dependency, one file, one command, one run.

use std::path::Path;

use swift_plugin::build::{Toolchain, ToolchainOptions};
use swift_tests::{json, rows, swift_host, workspace};

/// LoRA with a trained gain on each output: neither bundled nor known to the host.
const SOURCE: &str = r#"
//! LoRA whose outputs carry a trained gain.

use swift_sdk::hf_peft::{self, Targets};
use swift_sdk::prelude::*;

config! {
    /// A low-rank product with a gain on each output.
    pub struct Gained {
        /// Rank of the product.
        rank: u64 = 2,
        /// Layers to adapt.
        target_modules: Targets = Targets::AllLinear,
    }
}

impl Tuner for Gained {
    fn plan(&self, site: &SiteInfo) -> Option<SitePlan> {
        self.target_modules.take(site).then(|| {
            SitePlan::new()
                .param("down", [self.rank, site.d_in], Init::KaimingUniform(5f32.sqrt()))
                .param("up", [site.d_out, self.rank], Init::Zeros)
                .param("gain", [site.d_out], Init::Ones)
        })
    }

    fn apply(&self, site: &Site, x: &Value) -> Value {
        let (down, up) = (site.param("down"), site.param("up"));
        (site.base(x) + x.linear(&down).linear(&up)) * site.param("gain")
    }

    fn merge(&self, site: &Site) -> Option<Value> {
        let change = site.param("up").matmul(site.param("down"));
        Some((site.weight() + change) * site.param("gain").read().reshape([site.info().d_out, 1]))
    }

    fn export(&self, layout: &str, sites: &[AdaptedSite]) -> Result<ExportPlan> {
        let mut fields = hf_peft::fields!(self: target_modules);
        fields["r"] = self.rank.into();
        fields["peft_type"] = "GAINED".into();
        hf_peft::export(layout, sites, fields)
    }
}

plugin! { tuner "gained": Gained }
"#;

fn project(dir: &Path) {
    let manifest = format!(
        "[package]\nname = \"gained\"\nversion = \"1.2.3\"\nedition = \"2024\"\nlicense = \"MIT\"\n\n\
         [lib]\ncrate-type = [\"cdylib\"]\n\n[dependencies]\nswift-sdk = {{ path = {:?} }}\n\n\
         [profile.release]\nopt-level = \"s\"\nlto = true\ncodegen-units = 1\npanic = \"abort\"\nstrip = true\n\n[workspace]\n",
        workspace().join("plugins/sdk")
    );
    std::fs::create_dir_all(dir.join("src")).unwrap();
    std::fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    std::fs::write(dir.join("src/lib.rs"), SOURCE).unwrap();
    // Only to save minutes: what the bundled plugins' build has compiled already (the standard library, where rustup has no target for
    // it) is taken from there, which needs the same versions.
    std::fs::create_dir_all(dir.join(".cargo")).unwrap();
    let cache = format!("[build]\ntarget-dir = {:?}\n", workspace().join("plugins/target"));
    std::fs::write(dir.join(".cargo/config.toml"), cache).unwrap();
    std::fs::copy(workspace().join("plugins/Cargo.lock"), dir.join("Cargo.lock")).unwrap();
}

#[test]
fn a_plugin_from_outside_builds_and_trains() {
    if let Err(error) = Toolchain::find(&ToolchainOptions::default()) {
        eprintln!("SKIPPED: no guest toolchain: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(!dir.starts_with(workspace()));
    project(&dir.join("gained"));
    let built = swift_host(dir, "plugin build gained").ok();
    assert_eq!(built.stdout.trim_end(), "gained/dist/gained.wasm");
    let plugin = "gained/dist/gained.wasm";

    let inspected: serde_json::Value =
        serde_json::from_str(&swift_host(dir, &format!("plugin inspect {plugin} --json")).ok().stdout).unwrap();
    for fact in ["gained", "1.2.3", "peft", "rank"] {
        assert!(inspected.to_string().contains(fact), "{fact}: {inspected}");
    }

    rows(dir, 12);
    let line = format!(
        "run --plugin {plugin} --model swift-tiny --dataset rows.jsonl --tuner_config {{\"rank\":3}} --learning_rate 1e-2 --max_steps 6 \
         --gradient_accumulation_steps 2 --per_device_train_batch_size 4 --output_dir out"
    );
    let folder = dir.join(swift_host(dir, &line).ok().stdout.trim_end());
    let summary = json(folder.join("summary.json"));
    let (first, last) = (summary["first_loss"].as_f64().unwrap(), summary["last_loss"].as_f64().unwrap());
    assert!(last < first, "{first} -> {last}");
    assert_eq!(summary["plugin_calls_after_tracing"], 0);
    assert!(summary["plugins"]["gained"].is_string(), "{}", summary["plugins"]);

    // The adapter is served and merged like any other.
    let checkpoint = folder.join("checkpoint-6");
    let logits = |rest: &str, out: &str| {
        swift_host(dir, &format!("logits --tokens 5,6,7 --out {out} {rest}")).ok();
        let file = swift_formats::SafetensorsFile::open(&dir.join(out)).unwrap();
        file.tensor("logits").unwrap().to_f32().unwrap()
    };
    let adapted = logits(&format!("--model swift-tiny --adapters {}", checkpoint.display()), "adapted.safetensors");
    swift_host(dir, &format!("export --adapters {} --out merged.gguf --quant f32", checkpoint.display())).ok();
    let off = swift_tests::max_difference(&adapted, &logits("--model merged.gguf", "merged.safetensors"));
    assert!(off < 1e-3, "{off}");

    // With nothing else given, the demo's defaults (flags of LoRA among them) do not get in its way.
    swift_host(dir, &format!("run --plugin {plugin} --max_steps 1 --output_dir demo")).ok();
}
