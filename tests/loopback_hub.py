"""A small Hugging Face Hub on loopback, of the calls that huggingface_hub and timm make: for tests, and to try by hand.

    python tests/loopback_hub.py 8765 &
    export HF_ENDPOINT=http://127.0.0.1:8765 HF_TOKEN=hf_loopbackloopback HF_HUB_DISABLE_XET=1

The user is called 'user'. Files of a kind go by LFS, served from another origin (localhost) after a redirect, as on the
true Hub. `Hub.fail` makes calls fail: by a status, or by a connection that breaks.
"""
import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = 'hf_loopbackloopback'
LFS = ('.safetensors', '.png', '.onnx')


def git_hash(data):
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


class Repo:
    """Branches, each a list of commits, which are dicts of files: the newest last."""

    def __init__(self, private):
        self.private = private
        first = {'.gitattributes': b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n'}
        self.branches = {'main': [(hashlib.sha1(b'first').hexdigest(), first)]}

    def files(self, branch='main'):
        return self.branches[branch][-1][1]

    def add(self, branch, files, base='main'):
        commits = self.branches.setdefault(branch, list(self.branches[base]))
        oid = hashlib.sha1(repr((branch, len(commits), sorted(files))).encode()).hexdigest()
        commits.append((oid, files))
        return oid


class Hub(ThreadingHTTPServer):
    """The server; `with Hub() as hub` runs it. `requests` are (method, path, Authorization)."""

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(('127.0.0.1', port), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.repos, self.blobs, self.requests, self.faults = {}, {}, [], []
        self.token = TOKEN
        self.reads = 'visibility'  # what says that a repository is to be private; other servers read 'private'
        self.lock = threading.RLock()

    def fail(self, method, path, status=None, headers=(), times=1, after=0, says='as asked'):
        """Let calls fail: the next `times` whose method and path match get a status, or, if it is None, lose their
        connection after that many bytes of their body; `status='done'` does what is asked before losing it. `says` is
        the server's message; {headers} in it, and in the values of headers, is those of the request."""
        self.faults.append(
            dict(method=method, path=path, status=status, headers=dict(headers), times=times, after=after, says=says))

    def made(self, method, path):
        return [r for r in self.requests if r[0] == method and re.search(path, r[1])]

    def content(self, repo_id, branch='main'):
        """Files of a repository as bytes, LFS ones too."""
        files = self.repos[repo_id].files(branch)
        return {k: self.blobs[v[1]] if isinstance(v, tuple) else v for k, v in files.items() if k != '.gitattributes'}

    def handle_error(self, request, client_address):
        pass  # clients that hang up

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def answer(self, status=200, data=b'', **headers):
        if not isinstance(data, bytes):
            data = json.dumps(data).encode()
            headers.setdefault('Content_Type', 'application/json')
        self.send_response(status)
        for k, v in {'Content_Length': len(data), **headers}.items():
            self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def refuse(self, status, code='', message=''):
        self.answer(status, {'error': message or code}, **(dict(X_Error_Code=code) if code else {}),
                    **(dict(X_Error_Message=message) if message else {}))

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(2)

    def handle_call(self):
        hub = self.server
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        authorization = self.headers.get('Authorization')
        length = int(self.headers.get('Content-Length') or 0)
        with hub.lock:
            hub.requests.append((self.command, path, authorization))
            fault = next((f for f in hub.faults if f['times'] and f['method'] == self.command
                          and re.search(f['path'], path)), None)
            if fault is not None:
                fault['times'] -= 1
        if fault is not None and fault['status'] is None:
            self.rfile.read(min(length, fault['after']))
            return self.hang_up()
        body = b''
        if self.headers.get('Transfer-Encoding') == 'chunked':
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(length)
        if fault is not None and fault['status'] != 'done':
            sent = {k.lower(): v for k, v in self.headers.items()}
            sent = '; '.join(f'{k}: {sent[k]}' for k in sorted(sent, key=lambda k: k != 'authorization'))
            headers = {k: v.replace('{headers}', sent) for k, v in fault['headers'].items()}
            return self.answer(fault['status'], {'error': fault['says'].replace('{headers}', sent)}, **headers)
        with hub.lock:
            if fault is not None:  # done, but nobody hears of it
                self.answer = lambda *_, **__: None
            if authorization is not None and authorization != f'Bearer {hub.token}':
                self.refuse(401, message='Invalid credentials in Authorization header')
            else:
                self.route(path, query, body, authorization is not None)
        if fault is not None:
            self.hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = handle_call

    def route(self, path, query, body, known):
        hub = self.server
        if match := re.fullmatch(r'/lfs/(\w+)', path):
            return self.lfs(match[1], body)
        if path == '/api/validate-yaml':
            return self.validate(json.loads(body)['content'])
        if path == '/api/repos/create':
            return self.create(json.loads(body), known)
        match = (re.fullmatch(r'/api/models/([\w.-]+/[\w.-]+)(?:/(\w+)/(.+))?', path)
                 or re.fullmatch(r'/([\w.-]+/[\w.-]+?)(?:\.git)?/(info|resolve)/(.+)', path))
        if not match:
            return self.refuse(404, message='no such call')
        repo_id, call, rest = match[1], match[2], match[3]
        repo = hub.repos.get(repo_id)
        if repo is None or (repo.private and not known):
            return self.refuse(404, 'RepoNotFound')
        if self.command == 'POST' and not known:
            return self.refuse(401)
        if self.command == 'POST' and not repo_id.startswith('user/') and 'create_pr' not in query and call != 'info':
            return self.refuse(403, message='not yours')
        if call == 'branch':
            if rest in repo.branches:
                return self.refuse(409, message='Reference already exists')
            repo.branches[rest] = list(repo.branches['main'])
            return self.answer(201, {})
        if call == 'info':
            objects = json.loads(body)['objects']
            return self.answer(data={'transfer': 'basic', 'objects': [self.lfs_object(o) for o in objects]})
        revision, _, name = rest.partition('/') if call == 'resolve' else (rest or 'main', '', '')
        if revision not in repo.branches and not any(revision == c for b in repo.branches.values() for c, _ in b):
            return self.refuse(404, 'RevisionNotFound')
        if call in (None, 'revision'):
            return self.info(repo_id, repo, revision)
        if call == 'resolve':
            return self.resolve(repo, revision, name)
        if call == 'preupload':
            return self.answer(data={'files': [
                dict(path=f['path'], uploadMode='lfs' if f['path'].endswith(LFS) else 'regular', shouldIgnore=False)
                for f in json.loads(body)['files']]})
        if call == 'commit':
            return self.commit(repo_id, repo, revision, [json.loads(line) for line in body.splitlines()], query)
        self.refuse(404, message='no such call')

    def create(self, wanted, known):
        if not known:
            return self.refuse(401)
        if wanted['organization'] not in (None, 'user'):
            return self.refuse(403, message='not your namespace')
        repo_id = f'user/{wanted["name"]}'
        if repo_id in self.server.repos:
            return self.answer(409, {'error': 'it is there', 'url': f'{self.server.url}/{repo_id}'})
        reads = self.server.reads
        self.server.repos[repo_id] = Repo(wanted.get(reads) == ('private' if reads == 'visibility' else True))
        self.answer(data={'url': f'{self.server.url}/{repo_id}', 'name': repo_id})

    def validate(self, content):
        """The front matter of a card, as strictly as the Hub takes it."""
        errors = []
        try:
            data = yaml.safe_load(re.match(r'---\n(.*?)\n---\n', content, re.S)[1])
            if not re.fullmatch(r'[a-z0-9.-]+', data['license']):
                errors.append({'message': '"license" must be an identifier'})
            for entry in data.get('model-index') or ():
                for result in entry['results']:
                    if not (result['task']['type'] and result['dataset']['type'] and result['dataset']['name']):
                        errors.append({'message': '"model-index" is not whole'})
            for name in data.get('datasets') or ():
                if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', name):
                    errors.append({'message': '"datasets" must be ids'})
        except (KeyError, TypeError, yaml.YAMLError) as e:
            errors.append({'message': f'{type(e).__name__}: {e}'})
        self.answer(400 if errors else 200, {'errors': errors, 'warnings': []})

    def lfs_object(self, wanted):
        oid, href = wanted['oid'], f'{self.server.url}/lfs/{wanted["oid"]}'
        if oid in self.server.blobs:
            return wanted  # without actions: it is there
        return {**wanted, 'actions': {'upload': {'href': href}, 'verify': {'href': href}}}

    def lfs(self, oid, body):
        blobs = self.server.blobs
        if self.command == 'PUT':
            if hashlib.sha256(body).hexdigest() != oid:
                return self.refuse(400, message='not what was announced')
            blobs[oid] = body
            return self.answer()
        if oid not in blobs:
            return self.refuse(404, message='no such object')
        if self.command == 'POST':
            size = json.loads(body)['size']
            return self.answer() if size == len(blobs[oid]) else self.refuse(400, message='another size')
        self.answer(data=blobs[oid])

    def info(self, repo_id, repo, revision):
        siblings = []
        oid, files = self.at(repo, revision)
        for name, content in files.items():
            if isinstance(content, tuple):
                size = len(self.server.blobs[content[1]])
                siblings.append(dict(rfilename=name, size=size, blobId=git_hash(content[1].encode()),
                                     lfs=dict(sha256=content[1], size=size, pointerSize=134)))
            else:
                siblings.append(dict(rfilename=name, size=len(content), blobId=git_hash(content)))
        self.answer(data=dict(id=repo_id, sha=oid, private=repo.private, siblings=siblings))

    @staticmethod
    def at(repo, revision):
        if revision in repo.branches:
            return repo.branches[revision][-1]
        return next(c for b in repo.branches.values() for c in b if c[0] == revision)

    def resolve(self, repo, revision, name):
        oid, files = self.at(repo, revision)
        if name not in files:
            return self.refuse(404, 'EntryNotFound')
        content = files[name]
        if isinstance(content, tuple):
            away = self.server.url.replace('127.0.0.1', 'localhost')
            size = len(self.server.blobs[content[1]])
            return self.answer(
                302, X_Repo_Commit=oid, X_Linked_Etag=f'"{content[1]}"', X_Linked_Size=size,
                Location=f'{away}/lfs/{content[1]}')
        self.answer(data=content, X_Repo_Commit=oid, ETag=f'"{git_hash(content)}"')

    def commit(self, repo_id, repo, revision, lines, query):
        header = lines[0]['value']
        if header.get('parentCommit', repo.branches[revision][-1][0]) != repo.branches[revision][-1][0]:
            return self.refuse(412, message='A commit has happened since')
        files = dict(repo.files(revision))
        for line in lines[1:]:
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                if value['oid'] not in self.server.blobs:
                    return self.refuse(400, message='an object is missing')
                files[value['path']] = ('lfs', value['oid'])
            elif line['key'] == 'deletedFile':
                del files[value['path']]
        number = 1 + sum(b.startswith('refs/pr/') for b in repo.branches)
        pull = 'create_pr' in query
        oid = repo.add(f'refs/pr/{number}' if pull else revision, files, revision)
        pages = f'{self.server.url}/{repo_id}'
        self.answer(data=dict(commitOid=oid, commitUrl=f'{pages}/commit/{oid}', success=True,
                              **(dict(pullRequestUrl=f'{pages}/discussions/{number}') if pull else {})))


if __name__ == '__main__':
    with Hub(int(sys.argv[1])) as server:
        server.thread.join()
