"""clusters/aws.sh against IAM and S3 in simulation, and what its policies let a head and a worker do.

The simulation keeps policies and checks their grammar, but does not apply their conditions. That is done here, by IAM's
rules ("Policy evaluation logic" and "Condition operators" in its user guide) as far as these policies need them.
"""

import json
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
from s3 import Api, serve

ROOT = Path(__file__).parents[2]
AWS = """#!{python}
import json, re, sys
import boto3
service, operation, *words = sys.argv[1:]
camel = lambda text: "".join(word.capitalize() for word in text.split("-"))
named = {{word[2:]: value for word, value in zip(words[::2], words[1::2])}}
query, _ = named.pop("query", None), named.pop("output", None)
given = {{camel(name).replace("Aws", "AWS"): value for name, value in named.items()}}
given = {{name: json.loads(value) if name.endswith("Configuration") else value for name, value in given.items()}}
client = boto3.client(service.removesuffix("api"))
answer = getattr(client, operation.replace("-", "_"))(**given)
print(answer[query] if query else "")
"""
"""The AWS command line, as far as the script uses it."""
ACCOUNT, CLUSTER = "123456789012", {"ray-cluster-name": "sgan"}


@pytest.fixture(scope="module")
def api():
    with serve() as made:
        made.bucket("mine")
        yield made


@pytest.fixture(scope="module")
def policies(api: Api, tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """The statements of each role after the script ran twice."""
    command = tmp_path_factory.mktemp("bin") / "aws"
    command.write_text(AWS.format(python=sys.executable))
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    for _ in range(2):
        script = [str(ROOT / "clusters" / "aws.sh"), "mine"]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
    iam = boto3.client("iam")
    assert boto3.client("s3").get_bucket_versioning(Bucket="mine")["Status"] == "Enabled"
    found = {}
    for role in ("sgan-head", "sgan-worker"):
        (profile,) = iam.list_instance_profiles_for_role(RoleName=role)["InstanceProfiles"]
        assert profile["InstanceProfileName"] == role
        assert iam.list_role_policies(RoleName=role)["PolicyNames"] == [role]
        document = iam.get_role_policy(RoleName=role, PolicyName=role)["PolicyDocument"]
        found[role] = (json.loads(document) if isinstance(document, str) else document)["Statement"]
    return found


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allows(statements: list[dict[str, Any]], action: str, resource: str, **context: str) -> bool:
    """Whether a statement allows an action: it, its resource and all conditions match."""

    def holds(operator: str, key: str, values: str | list[str]) -> bool:
        found = context.get(key.replace(":", "_").replace("/", "_").replace("-", "_"))
        if found is None:
            return operator.endswith("IfExists")
        return any(fnmatchcase(found, value) if "Like" in operator else found == value for value in listed(values))

    return any(
        any(fnmatchcase(action, each) for each in listed(statement["Action"]))
        and any(fnmatchcase(resource, each) for each in listed(statement["Resource"]))
        and all(
            holds(operator, key, values)
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
        for statement in statements
    )


INSTANCE = f"arn:aws:ec2:us-west-2:{ACCOUNT}:instance/i-1"
OURS, OTHERS = {"aws_ResourceTag_ray_cluster_name": "sgan"}, {"aws_ResourceTag_ray_cluster_name": "other"}


def test_a_head_ends_and_tags_instances_of_its_cluster_alone(policies):
    head = policies["sgan-head"]
    for action in ("ec2:TerminateInstances", "ec2:CreateTags"):
        assert allows(head, action, INSTANCE, **OURS)
        assert not allows(head, action, INSTANCE, **OTHERS)
        assert not allows(head, action, INSTANCE)
    assert allows(head, "ec2:CreateTags", INSTANCE, ec2_CreateAction="RunInstances")
    assert not allows(head, "ec2:CreateTags", f"arn:aws:ec2:us-west-2:{ACCOUNT}:volume/v", **OURS)
    assert not allows(head, "ec2:StopInstances", INSTANCE, **OURS)


def test_a_head_starts_instances_that_carry_its_clusters_tag(policies):
    head = policies["sgan-head"]
    assert allows(head, "ec2:RunInstances", INSTANCE, aws_RequestTag_ray_cluster_name="sgan")
    assert not allows(head, "ec2:RunInstances", INSTANCE, aws_RequestTag_ray_cluster_name="other")
    assert not allows(head, "ec2:RunInstances", INSTANCE)
    for kind in ("subnet", "security-group", "network-interface", "volume", "key-pair", "spot-instances-request"):
        assert allows(head, "ec2:RunInstances", f"arn:aws:ec2:us-west-2:{ACCOUNT}:{kind}/x"), kind
    for kind in ("image", "snapshot"):
        assert allows(head, "ec2:RunInstances", f"arn:aws:ec2:us-west-2::{kind}/x"), kind


def test_a_head_gives_the_workers_role_to_machines_alone(policies):
    role = f"arn:aws:iam::{ACCOUNT}:role/sgan-worker"
    assert allows(policies["sgan-head"], "iam:PassRole", role, iam_PassedToService="ec2.amazonaws.com")
    assert not allows(policies["sgan-head"], "iam:PassRole", role, iam_PassedToService="lambda.amazonaws.com")
    assert not allows(policies["sgan-head"], "iam:PassRole", role.replace("sgan-worker", "admin"))


@pytest.mark.parametrize("role", ["sgan-head", "sgan-worker"])
def test_both_roles_reach_their_folder_of_the_bucket_alone(policies, role):
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert allows(policies[role], action, "arn:aws:s3:::mine/runs/done/a.json")
        assert not allows(policies[role], action, "arn:aws:s3:::mine/other/a.json")
        assert not allows(policies[role], action, "arn:aws:s3:::another/runs/a.json")
    assert allows(policies[role], "s3:ListBucket", "arn:aws:s3:::mine", s3_prefix="runs/done/")
    assert allows(policies[role], "s3:ListBucket", "arn:aws:s3:::mine")  # asked where an object is missing
    assert not allows(policies[role], "s3:ListBucket", "arn:aws:s3:::mine", s3_prefix="other/")
    assert not allows(policies[role], "s3:DeleteObjectVersion", "arn:aws:s3:::mine/runs/done/a.json")


def test_a_worker_has_no_right_but_the_bucket(policies):
    assert {action.partition(":")[0] for each in policies["sgan-worker"] for action in listed(each["Action"])} == {"s3"}
    wide = [each["Action"] for each in policies["sgan-head"] if each["Resource"] == "*"]
    assert wide == ["ec2:Describe*"]
