#!/usr/bin/env python3
"""A process that shows another protobuf to all that it loads: interposition_test.py LIBRARY HEADERS
KVD.

Each protobuf function that libkvd.so calls is there a second time, in the program, as an instruction
that kills. Loaded with RTLD_DEEPBIND, as deploy/README.md says, the library must not meet any.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

LIBRARY, HEADERS, KVD = sys.argv[1:4]
PROGRAM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <kvd.h>
int main(int c,char**v){ void*h=dlopen(v[1],RTLD_NOW|RTLD_LOCAL|(atoi(v[3])?RTLD_DEEPBIND:0));
  if(!h){puts(dlerror());
  return 1;}
 kvd_status(*create)(const kvd_client_options*,kvd_client**)=dlsym(h,"kvd_client_create");
 kvd_status(*reg)(kvd_client*,const kvd_namespace_descriptor*,uint64_t,kvd_namespace**)=dlsym(h,"kvd_namespace_register");
 kvd_client_options o=KVD_CLIENT_OPTIONS_INIT;
  o.endpoint=v[2];
  kvd_client*cl;
  kvd_namespace*ns;
  kvd_namespace_descriptor d=KVD_NAMESPACE_DESCRIPTOR_INIT;
  kvd_group g={0,0,0,16,4096};
  d.model="m";
  d.groups=&g;
  d.group_count=1;
 create(&o,&cl);
  printf("register %d\n",reg(cl,&d,0,&ns));
  return 0;}
"""


class InterpositionTest(unittest.TestCase):
    def test_deep_binding_keeps_to_the_library_s_own_protobuf(self):
        with tempfile.TemporaryDirectory(prefix="kvd-interposition-") as name:
            folder = pathlib.Path(name)
            undefined = subprocess.run(["nm", "-D", "--undefined-only", LIBRARY], check=True,
                                       stdout=subprocess.PIPE, text=True).stdout
            functions = set(re.findall(r"\b(_ZNK?6google8protobuf\w+)", undefined))
            self.assertGreater(len(functions), 20)
            (folder / "fatal.s").write_text(
                '.section .note.GNU-stack,"",@progbits\n.text\n' + "".join(
                    f".globl {f}\n.type {f},@function\n{f}:\n ud2\n" for f in functions))
            (folder / "program.c").write_text(PROGRAM)
            subprocess.run(["cc", "-rdynamic", f"-I{HEADERS}", folder / "program.c",
                            folder / "fatal.s", "-o", folder / "program"], check=True)
            endpoint = f"unix:{folder}/kvd.sock"
            daemon = subprocess.Popen([KVD, "--listen", endpoint, "--dram", "64MiB"],
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.addCleanup(daemon.stdout.close)
            self.addCleanup(daemon.wait)
            self.addCleanup(daemon.kill)
            self.assertRegex(daemon.stdout.readline(), "^kvd ready")

            def run(deep):
                return subprocess.run([folder / "program", LIBRARY, endpoint, deep],
                                      stdout=subprocess.PIPE, text=True, timeout=60)

            self.assertLess(run("0").returncode, 0, "without it the test shows nothing")
            self.assertEqual(run("1").stdout, "register 0\n")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
