"""The platform's Python SDK, unmodified but for endpoint and scheme, plays an owner; a thread plays the guests."""

import hashlib
import hmac
import http.client
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request
import uuid

from jdcloud_sdk.core import const
from jdcloud_sdk.core.config import Config
from jdcloud_sdk.core.credential import Credential
from jdcloud_sdk.core.logger import FATAL, Logger
from jdcloud_sdk.services.vm.apis import (
    AttachKeypairRequest as attach,
    CreateKeypairRequest as create,
    DeleteKeypairRequest as delete,
    DescribeInstanceRequest as describe_instance,
    DescribeInstancesRequest as describe_instances,
    DescribeKeypairsRequest as describe,
    DetachKeypairRequest as detach,
    ImportKeypairRequest as import_,
    ModifyInstancePasswordRequest as modify_password,
    RebootInstanceRequest as reboot,
    StartInstanceRequest as start,
    StopInstanceRequest as stop,
)
from jdcloud_sdk.services.vm.client.VmClient import VmClient

BINARY = sys.argv.pop(1)
REGION = "cn-north-1"
FLEET = """
[[instance]]
id = "i-run"
[[instance]]
id = "i-stop"
status = "stopped"
[[instance]]
id = "i-win"
os_type = "windows"
"""
ACCESS_KEYS = '[[access_key]]\nid = "AK"\nsecret = "the secret"\n'


class Filter:
    def __init__(self, name, values):
        self.name, self.values = name, values


class Guest(threading.Thread):
    """Answers every command of one instance: a real agent needs a guest to change."""

    def __init__(self, base):
        super().__init__(daemon=True)
        self.base, self.seen = base, []

    def run(self):
        while True:
            try:
                with urllib.request.urlopen(f"{self.base}/keypair/command?wait=60") as response:
                    if response.status != 200:
                        continue
                    command = json.load(response)
            except OSError:
                return
            self.seen.append(command)
            result = {name: None for name in (
                "reason", "fingerprint", "user", "authorizedKeysFile", "effective", "proof", "componentVersion")}
            result |= {
                "commandId": command["commandId"], "instanceId": command["instanceId"], "action": command["action"],
                "status": "succeeded", "code": "OK", "message": "done", "changed": True,
                "keyName": command.get("keyName"), "passWordAuth": command.get("passWordAuth"), "warnings": [],
                "agentVersion": "3.1.0", "finishedAt": "2026-01-01T00:00:00Z", "durationMs": 1}
            url = f"{self.base}/keypair/results/{command['commandId']}"
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(result).encode(), method="PUT")):
                pass


class Clients(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        fleet, keys = self.file("fleet.toml", FLEET), self.file("keys.toml", ACCESS_KEYS)
        arguments = [BINARY, "serve", "--api", "127.0.0.1:0", "--metadata", "127.0.0.1:0",
                     "--instances", fleet, "--access-keys", keys, "--attach-wait", "2"]
        self.server = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(self.end)
        first = json.loads(self.server.stdout.readline())
        self.endpoint, self.bases = first["api"].removeprefix("http://"), first["metadata"]
        self.key = self.public_key("owner")

    def end(self):
        self.server.terminate()
        self.server.wait()
        self.server.stdout.close()

    def file(self, name, text):
        path = pathlib.Path(self.folder.name, name)
        path.write_text(text)
        return str(path)

    def public_key(self, comment):
        path = pathlib.Path(self.folder.name, comment)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True)
        return path.with_suffix(".pub").read_text()

    def client(self, secret="the secret"):
        config = Config(self.endpoint, "http")
        return VmClient(Credential("AK", secret), config, Logger(FATAL))

    def ask(self, request, **other):
        """The result of a request that has to succeed."""
        response = self.client(**other).send(request)
        self.assertIsNone(response.error, vars(response.error) if response.error else None)
        self.assertTrue(response.request_id)
        return response.result or {}

    def refused(self, request, code, status, message, **other):
        error = self.client(**other).send(request).error
        self.assertIsNotNone(error)
        self.assertEqual((error.code, error.status), (code, status))
        self.assertIn(message, error.message)

    def import_request(self, name="my-test", header=None):
        return import_.ImportKeypairRequest(import_.ImportKeypairParameters(REGION, name, self.key), header)

    def attach_request(self, *instances, password="no"):
        parameters = attach.AttachKeypairParameters(REGION, "my-test", list(instances), password)
        return attach.AttachKeypairRequest(parameters)

    def keypairs(self, *filters, size=None):
        parameters = describe.DescribeKeypairsParameters(REGION)
        parameters.setFilters(list(filters) or None)
        parameters.setPageSize(size)
        return self.ask(describe.DescribeKeypairsRequest(parameters))

    def test_a_key_pair_lives_and_dies(self):
        guest = Guest(self.bases["i-run"])
        guest.start()
        imported = self.ask(self.import_request())
        blob = hashlib.md5(__import__("base64").b64decode(self.key.split()[1])).hexdigest()
        self.assertEqual(imported["keyFingerprint"].replace(":", ""), blob)
        bound = self.ask(self.attach_request("i-run", "i-stop"))
        self.assertEqual(bound, {"successInstanceId": ["i-run", "i-stop"], "failInstanceId": []})
        self.assertEqual((guest.seen[0]["action"], guest.seen[0]["passWordAuth"]), ("attach", "no"))
        listed = self.keypairs(Filter("keyNames", ["my-test", "other"]), size=10)
        self.assertEqual(listed["totalCount"], 1)
        self.assertEqual(listed["keypairs"][0]["instanceIds"], ["i-run", "i-stop"])
        self.assertEqual(self.keypairs(Filter("keyNames", ["other"]))["totalCount"], 0)
        self.refused(self.attach_request("i-run", password="yes"), 400, "FAILED_PRECONDITION",
                     "Already attached key pair. instance id i-run")
        detached = self.ask(detach.DetachKeypairRequest(
            detach.DetachKeypairParameters(REGION, "my-test", ["i-run"])))
        self.assertEqual(detached["successInstanceId"], ["i-run"])
        self.assertEqual(guest.seen[1]["action"], "detach")
        gone = delete.DeleteKeypairRequest(delete.DeleteKeypairParameters(REGION, "my-test"))
        self.ask(gone)
        time.sleep(1)  # in the same second it would have the same signature, which is good once
        self.refused(gone, 404, "NOT_FOUND", "Keypair 'my-test' not found")

    def test_a_key_pair_that_is_made_here_is_one_of_openssh(self):
        made = self.ask(create.CreateKeypairRequest(create.CreateKeypairParameters(REGION, "made")))
        self.assertTrue(made["privateKey"].startswith("-----BEGIN PRIVATE KEY-----\n"))
        private = self.file("made.pem", made["privateKey"])
        pathlib.Path(private).chmod(0o600)
        seen = subprocess.run(["ssh-keygen", "-l", "-E", "md5", "-f", private], capture_output=True, text=True, check=True)
        self.assertIn(f"MD5:{made['keyFingerprint']} ", seen.stdout)
        self.assertNotIn("privateKey", self.keypairs()["keypairs"][0])

    def test_the_states_that_an_attach_depends_on(self):
        def verb(module, name, instance, *more):
            parameters = getattr(module, f"{name}Parameters")(REGION, instance, *more)
            return getattr(module, f"{name}Request")(parameters)

        def status(instance):
            time.sleep(1)  # in the same second the same request has the same signature, which is good once
            parameters = describe_instance.DescribeInstanceParameters(REGION, instance)
            return self.ask(describe_instance.DescribeInstanceRequest(parameters))["instance"]["status"]

        self.ask(self.import_request())
        self.ask(verb(stop, "StopInstance", "i-run"))
        self.refused(verb(reboot, "RebootInstance", "i-run"), 400, "FAILED_PRECONDITION", "Invalid instance status stopped")
        self.assertEqual(status("i-run"), "stopped")
        self.assertEqual(self.ask(self.attach_request("i-run"))["successInstanceId"], ["i-run"])
        self.ask(verb(start, "StartInstance", "i-run"))
        self.refused(self.attach_request("i-run", password="yes"), 400, "FAILED_PRECONDITION",
                     "Invalid instance status starting")
        deadline = time.monotonic() + 20
        while status("i-run") != "running":
            self.assertLess(time.monotonic(), deadline)
        guest = Guest(self.bases["i-run"])
        guest.start()
        self.ask(verb(modify_password, "ModifyInstancePassword", "i-run", "Correct-horse1"))
        while len(guest.seen) < 2:
            self.assertLess(time.monotonic(), deadline + 20)
            time.sleep(0.1)
        actions = [(command["action"], command["passWordAuth"]) for command in guest.seen]
        self.assertEqual(actions, [("attach", "no"), ("setPasswordAuth", "yes")])
        self.refused(verb(modify_password, "ModifyInstancePassword", "i-run", "short"), 400, "INVALID_ARGUMENT", "password")
        self.refused(self.attach_request("i-win"), 400, "FAILED_PRECONDITION", "Windows OS")
        parameters = describe_instances.DescribeInstancesParameters(REGION)
        parameters.setFilters([Filter("status", ["stopped"])])
        listed = self.ask(describe_instances.DescribeInstancesRequest(parameters))
        self.assertEqual([one["instanceId"] for one in listed["instances"]], ["i-stop"])

    def test_who_is_not_let_in(self):
        self.refused(self.import_request(), 401, "ACCESS_ERROR", "does not match", secret="another")
        stale = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - 1000))
        self.refused(self.import_request(header={const.JDCLOUD_DATE: stale}), 401, "ACCESS_ERROR", "15 minutes")
        early = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + 1000))
        self.refused(self.import_request(header={const.JDCLOUD_DATE: early}), 401, "ACCESS_ERROR", "15 minutes")
        connection = http.client.HTTPConnection(self.endpoint)
        connection.request("GET", f"/v1/regions/{REGION}/keypairs")
        response = connection.getresponse()
        error = json.load(response)["error"]
        self.assertEqual((response.status, error["status"]), (401, "ACCESS_ERROR"))
        self.assertEqual(error["message"], "lack of header authorization[gw]")
        self.assertEqual(self.keypairs()["totalCount"], 0)

    def test_a_request_is_good_once(self):
        """Captured and sent again, with another nonce too, which the SDK does not sign."""
        captured = {}
        signed = self.import_request(header={const.JDCLOUD_DATE: time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())})
        import jdcloud_sdk.core.jdcloudclient as inside
        genuine = inside.requests.request

        def capture(method, url, **how):
            captured.update(method=method, url=url, headers=dict(how["headers"]), data=how["data"])
            return genuine(method, url, **how)

        inside.requests.request = capture
        self.addCleanup(setattr, inside.requests, "request", genuine)
        self.ask(signed)
        for nonce in (captured["headers"][const.JDCLOUD_NONCE], str(uuid.uuid4())):
            captured["headers"][const.JDCLOUD_NONCE] = nonce
            response = genuine(captured["method"], captured["url"], data=captured["data"], headers=captured["headers"])
            self.assertEqual(response.status_code, 401, response.text)
            self.assertIn("used before", response.json()["error"]["message"])

    def test_the_older_kind_of_signature(self):
        """As the Go SDK sends it: path and query are signed as they go over the wire, the colon encoded."""
        def send(method, path, query="", body=""):
            date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            headers = {"content-type": "application/json", "host": self.endpoint, "x-jdcloud-date": date,
                       "x-jdcloud-nonce": str(uuid.uuid4())}
            names = ";".join(sorted(headers))
            lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
            canonical = "\n".join([method, path, query, lines, names, hashlib.sha256(body.encode()).hexdigest()])
            scope = f"{date[:8]}/{REGION}/vm/jdcloud2_request"
            key = b"JDCLOUD2the secret"
            for part in scope.split("/"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            text = "\n".join(["JDCLOUD2-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
            signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
            headers["Authorization"] = f"JDCLOUD2-HMAC-SHA256 Credential=AK/{scope}, SignedHeaders={names}, Signature={signature}"
            connection = http.client.HTTPConnection(self.endpoint)
            connection.request(method, f"{path}?{query}" if query else path, body, headers)
            response = connection.getresponse()
            return response.status, json.load(response)

        body = json.dumps({"keyName": "my-test", "publicKey": self.key})
        for path in (f"/v1/regions/{REGION}/keypairs%3Aimport", f"/v1/regions/{REGION}/keypairs:import"):
            status, answer = send("POST", path, body=body)
            self.assertIn(status, (200, 400), answer)
        self.assertEqual(answer["error"]["message"], "KeyName 'my-test' already in use")
        query = urllib.parse.urlencode({"filters.1.name": "keyNames", "filters.1.values.1": "a b", "pageSize": "10"})
        self.assertIn("+", query)
        status, answer = send("GET", f"/v1/regions/{REGION}/keypairs", query)
        self.assertEqual((status, answer["result"]["totalCount"]), (200, 0), answer)
        status, answer = send("POST", f"/v1/regions/{REGION}/keypairs/my-test%3Aattach",
                              body='{"instanceIds": ["i-stop"], "passWordAuth": "no"}')
        self.assertEqual(answer["result"]["successInstanceId"], ["i-stop"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
