//! `plugin!`: what a component exports, and what it says of itself.

use std::sync::Once;

use crate::bindings::export_world;
use crate::{Config, trace};

export_world!(
    plain "package swift:sdk-about; world about { export swift:plugin/about@0.1.0; }",
    "swift:sdk-about/about",
    "swift_sdk::about_world",
    "__export_about"
);

pub use exports::swift::plugin::about::{Guest, Info, Item};

/// One thing that a component offers.
pub fn about<C: Config>(kind: &str, id: &str) -> Item {
    Item { kind: kind.into(), id: id.into(), summary: C::summary(), config_schema: C::schema().to_string() }
}

/// First step of every export: a panic is a bug of the plugin, and the host shall show its message next to the trap.
pub fn enter() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(|panic| trace::warn(&panic.to_string()))));
}

/// Exports a component: one line per kind, each with the name users type and the type that implements the kind's trait.
///
/// ```ignore
/// plugin! { tuner "lora": Lora }
/// ```
#[macro_export]
macro_rules! plugin {
    ($($kind:ident $id:literal : $ty:ty),+ $(,)?) => {
        #[doc(hidden)]
        struct SwiftPlugin;

        impl $crate::about_world::Guest for SwiftPlugin {
            fn get() -> $crate::about_world::Info {
                $crate::enter();
                $crate::about_world::Info {
                    name: env!("CARGO_PKG_NAME").into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                    license: env!("CARGO_PKG_LICENSE").into(),
                    items: vec![$($crate::plugin!(@item $kind $id $ty)),+],
                }
            }
        }

        $crate::about_world::__export_about!(SwiftPlugin with_types_in $crate::about_world);
        $($crate::plugin!(@export $kind $ty);)+
    };
    (@item model $id:literal $ty:ty) => { $crate::about::<$ty>("model", $id) };
    (@item tuner $id:literal $ty:ty) => { $crate::about::<$ty>("peft", $id) };
    (@item loss $id:literal $ty:ty) => { $crate::about::<$ty>("loss", $id) };
    (@item optimizer $id:literal $ty:ty) => { $crate::about::<$ty>("optimizer", $id) };
    (@item dataset $id:literal $ty:ty) => { $crate::about::<$ty>("dataset", $id) };
    (@item sampler $id:literal $ty:ty) => { $crate::about::<$ty>("sampler", $id) };
    (@export model $ty:ty) => {
        type SwiftModel = $crate::model::Exported<$ty>;
        $crate::model::__export_model!(SwiftModel with_types_in $crate::model);
    };
    (@export tuner $ty:ty) => {
        type SwiftTuner = $crate::tuner::Exported<$ty>;
        $crate::tuner::__export_tuner!(SwiftTuner with_types_in $crate::tuner);
    };
    (@export loss $ty:ty) => {
        type SwiftLoss = $crate::loss::Exported<$ty>;
        $crate::loss::__export_loss!(SwiftLoss with_types_in $crate::loss);
    };
    (@export optimizer $ty:ty) => {
        type SwiftOptimizer = $crate::optimizer::Exported<$ty>;
        $crate::optimizer::__export_optimizer!(SwiftOptimizer with_types_in $crate::optimizer);
    };
    (@export sampler $ty:ty) => {
        type SwiftSampler = $crate::sampler::Exported<$ty>;
        $crate::sampler::__export_sampler!(SwiftSampler with_types_in $crate::sampler);
    };
    (@export dataset $ty:ty) => {
        type SwiftDataset = $crate::dataset::Exported<$ty>;
        $crate::dataset::__export_dataset!(SwiftDataset with_types_in $crate::dataset);
    };
}
