# Reads one object of S3 with the credentials of the machine's role: IMDSv2, Signature Version 4.
import datetime, email.utils, hashlib, hmac, json, shutil, sys, urllib.error, urllib.parse, urllib.request

METADATA, REGION, URL, FILE = sys.argv[1:]
ROLES = "/latest/meta-data/iam/security-credentials/"
EMPTY = hashlib.sha256(b"").hexdigest()


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def ask(method, path, headers):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect)
    request = urllib.request.Request(METADATA + path, method=method, headers=headers)
    with direct.open(request, timeout=5) as answer:
        return answer.read(65536).decode()


def get(keys, shift):
    now = datetime.datetime.now(datetime.timezone.utc) + shift
    time = now.strftime("%Y%m%dT%H%M%SZ")
    parts = urllib.parse.urlsplit(URL)
    headers = {
        "host": parts.netloc,
        "x-amz-content-sha256": EMPTY,
        "x-amz-date": time,
        "x-amz-security-token": keys["Token"],
    }
    names = ";".join(headers)
    lines = "".join(name + ":" + value + "\n" for name, value in headers.items())
    request = "\n".join(["GET", parts.path, "", lines, names, EMPTY])
    scope = "/".join([time[:8], REGION, "s3", "aws4_request"])
    text = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = ("AWS4" + keys["SecretAccessKey"]).encode()
    for part in scope.split("/") + [text]:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    headers["authorization"] = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
        keys["AccessKeyId"], scope, names, key.hex())
    opener = urllib.request.build_opener(NoRedirect)
    return opener.open(urllib.request.Request(URL, headers=headers), timeout=30)


def fetch():
    token = ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "300"})
    token = {"X-aws-ec2-metadata-token": token}
    role = ask("GET", ROLES, token).split()[0]
    keys = json.loads(ask("GET", ROLES + role, token))
    try:
        answer = get(keys, datetime.timedelta())
    except urllib.error.HTTPError as error:
        # S3 refuses a clock that is off, and says what time it is.
        date = error.headers.get("Date")
        if error.code != 403 or not date:
            raise
        shift = email.utils.parsedate_to_datetime(date) - datetime.datetime.now(datetime.timezone.utc)
        if abs(shift.total_seconds()) < 300:
            raise
        answer = get(keys, shift)
    with answer, open(FILE, "wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)


try:
    fetch()
except urllib.error.HTTPError as error:
    sys.exit("tpi: fetching the agent: %s answered %s: %s" % (error.url, error, error.read(300)))
except Exception as error:
    sys.exit("tpi: fetching the agent: %r" % error)
