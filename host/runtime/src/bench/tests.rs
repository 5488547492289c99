//! The cases are well formed; how fast they are is no matter of tests.

use swift_graph::passes::{self, Options};
use swift_graph::plan::plan;

use super::{FAMILIES, cases, family};
use crate::{CpuDevice, CpuOptions, Device};

#[test]
fn every_case_compiles() {
    let device = CpuDevice::new(CpuOptions { threads: 1, isa: None }).unwrap();
    // The large weights of `linear`, the large arrays of `memory` and the large caches of attention are left to the command itself.
    let families = ["gemm", "experts", "conv", "lora"].into_iter().flat_map(cases::of);
    for build in families.chain(cases::attention()) {
        let case = build(&device).unwrap();
        let graph = passes::optimize(case.graph, &Options::default()).unwrap();
        device.compile(plan(graph, &|_| true).unwrap()).unwrap();
        assert!(case.amount > 0.0 && !case.shape.is_empty());
    }
    assert!(FAMILIES.iter().all(|name| *name == "pool" || !cases::of(name).is_empty()));
}

#[test]
fn launches_are_measured() {
    let device = CpuDevice::new(CpuOptions { threads: 2, isa: None }).unwrap();
    let mut figures = Vec::new();
    family(&device, "pool", &mut |figure| figures.push(figure.clone())).unwrap();
    assert!(figures.len() == 2 && figures.iter().all(|figure| figure.seconds > 0.0 && figure.rate > 0.0));
}

#[test]
fn an_unknown_family_is_refused() {
    let device = CpuDevice::new(CpuOptions { threads: 1, isa: None }).unwrap();
    assert!(family(&device, "gem", &mut |_| ()).unwrap_err().to_string().contains("gem"));
}
