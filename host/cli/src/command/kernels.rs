//! `bench kernels`: what each kernel family reaches, beside what the machine can do at most.

use std::process::ExitCode;

use anyhow::{Result, bail};
use swift_runtime::Device;
use swift_runtime::bench::{self, FAMILIES, Measured};

use crate::args::BenchKernelsArgs;
use crate::environment::Environment;

/// Measures; figures go to standard output as they come.
pub(crate) fn kernels(environment: &Environment, args: &BenchKernelsArgs) -> Result<ExitCode> {
    if let Some(unknown) = args.only.iter().find(|name| !FAMILIES.contains(&name.as_str())) {
        bail!("--only: there is no family of kernels `{unknown}`; the families are {}", FAMILIES.join(", "));
    }
    let device = environment.cpu()?;
    let info = device.describe();
    let ceilings = device.ceilings();
    let giga = |rate: f64| rate * 1e-9;
    eprintln!("{}, {} threads, {}", info.name, info.threads, info.isa);
    eprintln!(
        "ceilings: {:.0} GFLOP/s, {:.0} GOP/s of 8-bit products, {:.1} GB/s read, {:.1} GB/s read and written ({:.1} on 64 MB), \
         {:.2} us to another thread and back",
        giga(ceilings.flops),
        giga(ceilings.int8_ops),
        giga(ceilings.read),
        giga(ceilings.copy),
        giga(ceilings.copy_near),
        1e6 / ceilings.handoffs
    );
    let row = |m: &Measured| {
        let ceiling = m.ceiling(&ceilings);
        let percent = 100.0 * m.rate / ceiling;
        if args.json {
            let rounded = |x: f64| (x * 100.0).round() / 100.0;
            let object = serde_json::json!({
                "op": m.op, "shape": m.shape, "type": m.format, "rate": rounded(m.rate), "unit": m.bound.unit(),
                "percent_of_ceiling": rounded(percent), "ceiling": rounded(ceiling),
            });
            outln!("{object}");
        } else {
            let Measured { op, shape, format, rate, .. } = m;
            outln!("{op:<24}{shape:<20}{format:<7}{:>10.3} ms{rate:>9.1} {:<8}{percent:>6.1}%", m.seconds * 1e3, m.bound.unit());
        }
    };
    for family in FAMILIES.into_iter().filter(|name| args.only.is_empty() || args.only.iter().any(|only| only == name)) {
        bench::family(&device, family, &mut |measured| row(measured))?;
    }
    Ok(ExitCode::SUCCESS)
}
