// Asks flags by OpenFeature's own provider for pages: questions on standard input, what came of each on standard output, as JSON.
// client.mjs BASE [TOKEN]
//
// Or follows one flag, and prints what it is each time that the provider says something has changed: told by the stream of
// events, or every so many milliseconds.
// client.mjs follow BASE KEY [MILLISECONDS]
import { readFileSync } from 'node:fs';
import { EventSource } from 'eventsource';
import { OpenFeature, ProviderEvents } from '@openfeature/web-sdk';
import { OFREPWebProvider } from '@openfeature/ofrep-web-provider';

const client = OpenFeature.getClient();
const ask = {
  Boolean: client.getBooleanDetails,
  Float: client.getNumberDetails,
  Integer: client.getNumberDetails,
  Object: client.getObjectDetails,
  String: client.getStringDetails,
};

function answer(question) {
  const details = ask[question.type].call(client, question.key, question.default);
  return {
    value: details.value,
    variant: details.variant,
    reason: details.reason,
    error: details.errorCode,
    message: details.errorMessage,
    metadata: details.flagMetadata,
  };
}

async function answerAll(baseUrl, token) {
  const headers = token ? [['Authorization', `Bearer ${token}`]] : [];
  const provider = new OFREPWebProvider({ baseUrl, headers, cacheMode: 'disabled', changeDetection: 'none' });
  const questions = JSON.parse(readFileSync(0, 'utf8'));
  let context = JSON.stringify(questions[0].context);
  await OpenFeature.setContext(questions[0].context);
  // Without a token it never becomes ready: what the client says then is what a test is after.
  await OpenFeature.setProviderAndWait(provider).catch(() => {});
  const answers = [];
  for (const question of questions) {
    if (JSON.stringify(question.context) !== context) {
      context = JSON.stringify(question.context);
      await OpenFeature.setContext(question.context);
    }
    answers.push(answer(question));
  }
  process.stdout.write(JSON.stringify(answers));
}

async function follow(baseUrl, key, milliseconds) {
  const pollInterval = Number(milliseconds ?? 0);
  if (!pollInterval) {
    // What browsers bring along.
    globalThis.EventSource = EventSource;
  }
  const tell = () => console.log(JSON.stringify(answer({ type: 'Boolean', key, default: false })));
  await OpenFeature.setContext({ targetingKey: 'ann' });
  await OpenFeature.setProviderAndWait(new OFREPWebProvider({ baseUrl, cacheMode: 'disabled', pollInterval }));
  client.addHandler(ProviderEvents.ConfigurationChanged, tell);
  tell();
}

const [mode, ...rest] = process.argv.slice(2);
await (mode === 'follow' ? follow(...rest) : answerAll(mode, ...rest));
