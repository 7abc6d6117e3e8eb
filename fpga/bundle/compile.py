"""Quantises and compiles every model of the bundle inside the Vitis AI container, and notes each MD5 in the manifest.

    python compile.py        (compile.sh starts the container and runs this)

Needs the container's pytorch_nndct and vai_c_xir. What is compiled is not compiled again.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def quantise(name, folder):
    """vai_q_pytorch: calibrate on random features, then export the quantised model for the compiler."""
    import blocks
    import torch
    from pytorch_nndct.apis import torch_quantizer

    model, inputs = blocks.load(name)
    with torch.no_grad():
        for mode in ("calib", "test"):
            quantizer = torch_quantizer(mode, model, tuple(inputs), output_dir=folder, device=torch.device("cpu"))
            quantizer.quant_model(*inputs)
            if mode == "calib":
                quantizer.export_quant_config()
            else:
                quantizer.export_xmodel(output_dir=folder, deploy_check=False)
    exported = [file for file in os.listdir(folder) if file.endswith("_int.xmodel")]
    if len(exported) != 1:
        raise RuntimeError("the quantiser exported %d models for %s" % (len(exported), name))
    return os.path.join(folder, exported[0])


def compile_model(name):
    """The compiled model's MD5; raises where the quantiser or the compiler fails."""
    final = os.path.join(HERE, "xmodels", name)
    xmodel = os.path.join(final, name + ".xmodel")
    if not os.path.isfile(xmodel):
        work = final + ".part"
        shutil.rmtree(work, ignore_errors=True)
        os.makedirs(work)
        quantised = quantise(name, work)
        command = ["vai_c_xir", "-x", quantised, "-a", os.path.join(HERE, "arch.json"), "-o", work, "-n", name]
        subprocess.run(command, check=True)
        os.rename(work, final)
    with open(xmodel, "rb") as handle:
        return hashlib.md5(handle.read()).hexdigest()


def main():
    path = os.path.join(HERE, "hwnas_bundle.json")
    with open(path) as handle:
        manifest = json.load(handle)
    failed = []
    for position, name in enumerate(sorted(manifest["models"]), 1):
        try:
            manifest["models"][name]["md5"] = compile_model(name)
            said = "compiled"
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            failed.append(name)
            said = "failed: %s" % error
        print("%d of %d, %s: %s" % (position, len(manifest["models"]), name, said), flush=True)
        with open(path + ".part", "w") as handle:
            json.dump(manifest, handle, indent=2)
        os.replace(path + ".part", path)
    sys.exit("%d models failed" % len(failed) if failed else 0)


if __name__ == "__main__":
    main()
